#include "../register.h"

#include "driver.h"

TORCH_LIBRARY_IMPL(fusedtricks, CPU, library) {
  fusedtricks::register_driver<fusedtricks::cpu::Driver>(library);
}
