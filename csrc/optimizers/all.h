// The list of optimizers: what a driver instantiates, it instantiates for each line here.
#pragma once

#include "adagrad.h"
#include "adam.h"
#include "rmsprop.h"
#include "sgd.h"

#define FT_FOR_EACH_OPTIMIZER(apply) apply(Adagrad) apply(Adam) apply(RmsProp) apply(Sgd)
