#include "../register.h"

#include "driver.h"

#ifdef FT_CUDA_SHIM
TORCH_LIBRARY_IMPL(fusedtricks, CPU, library) {
#else
TORCH_LIBRARY_IMPL(fusedtricks, CUDA, library) {
#endif
  fusedtricks::register_driver<fusedtricks::cuda::Driver>(library);
}
