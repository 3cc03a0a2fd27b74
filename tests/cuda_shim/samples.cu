// Kernels that test the shim, see tests/test_cuda_shim.py. A sample launches one or more and
// returns the number of wrong results.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr unsigned kAll = 0xffffffffu;

// Each thread gets its block's sum of `in`, twice through the same shared array, which takes both
// barriers: 1 before the array is read, 2 before it is written again.
template <class T, int kBarriers>
__global__ void __launch_bounds__(1024) block_sum(const T* in, T* out, int n) {
  __shared__ T partial[32];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int lane = threadIdx.x % 32, n_warps = (blockDim.x + 31) / 32;
  for (int round = 0; round < 2; ++round) {
    T sum = i < n ? in[i] + T(round) : T(0);
    for (int delta = 16; delta > 0; delta /= 2) {
      const T other = __shfl_down_sync(kAll, sum, delta);
      // The last warp may lack lanes; what comes from there is garbage.
      if (lane + delta < 32 && threadIdx.x + delta < blockDim.x) sum += other;
    }
    if (lane == 0) partial[threadIdx.x / 32] = sum;
    if (kBarriers & 1) __syncthreads();
    T total = 0;
    for (int warp = 0; warp < n_warps; ++warp) total += partial[warp];
    if (kBarriers & 2) __syncthreads();
    if (i < n) out[round * n + i] = total;
  }
}

template <class T, int kBarriers = 3>
int run_block_sum(int threads, int blocks) {
  const int n = threads * blocks;
  std::vector<T> in(n), out(2 * n, T(-1));
  for (int i = 0; i < n; ++i) in[i] = static_cast<T>(i % 97 + 1);
  FT_LAUNCH((block_sum<T, kBarriers>), blocks, threads, nullptr, in.data(), out.data(), n);
  int n_wrong = 0;
  for (int block = 0; block < blocks; ++block) {
    T sum = 0;
    for (int i = 0; i < threads; ++i) sum += in[block * threads + i];
    for (int i = 0; i < threads; ++i) n_wrong += !(out[block * threads + i] == sum);
    for (int i = 0; i < threads; ++i) n_wrong += !(out[n + block * threads + i] == sum + threads);
  }
  return n_wrong;
}

int run_sums(int threads, int blocks) {
  return run_block_sum<float>(threads, blocks) + run_block_sum<double>(threads, blocks) +
         run_block_sum<int>(threads, blocks) + run_block_sum<long long>(threads, blocks);
}

int run_two_os_threads(int threads, int blocks) {
  int n_wrong[2] = {0, 0};
  const auto work = [&](int which) {
    for (int i = 0; i < 5; ++i) n_wrong[which] += run_block_sum<float>(threads, blocks);
  };
  std::thread first(work, 0), second(work, 1);
  first.join();
  second.join();
  return n_wrong[0] + n_wrong[1];
}

__global__ void write_past_end(float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) out[i] = 1;
}

int run_overflow(int threads, int blocks) {
  const int n = threads * blocks - 1;
  std::vector<float> out(n);
  FT_LAUNCH(write_past_end, blocks, threads, nullptr, out.data(), n);
  return 0;
}

enum class Way { block_and_warp, two_shuffles, two_masks, not_in_mask, two_barriers, width, error };

__global__ void misuse(Way way) {
  const bool first = threadIdx.x % 32 < 16;
  switch (way) {
    case Way::block_and_warp: first ? __syncthreads() : __syncwarp(kAll); break;
    case Way::two_shuffles: first ? __shfl_xor_sync(kAll, 1, 1) : __shfl_sync(kAll, 1, 1); break;
    case Way::two_masks: __syncwarp(first ? kAll >> 1 : kAll); break;
    case Way::not_in_mask: __syncwarp(first ? kAll << 16 : kAll >> 16); break;
    case Way::two_barriers: first ? __syncthreads() : __syncthreads(); break;
    case Way::width: __shfl_down_sync(kAll, 1, 1, 12); break;
    case Way::error: throw std::logic_error("thrown by a kernel");
  }
}

template <Way kWay>
int run_misuse(int threads, int blocks) {
  return FT_LAUNCH(misuse, blocks, threads, nullptr, kWay), 0;
}

__global__ void leave_early(int n, int* out) {
  __shared__ int values[1024];
  const int i = threadIdx.x;
  if (i >= n) return;
  values[i] = i;
  __syncwarp();
  __syncthreads();
  out[i] = values[n - 1 - i];
}

int run_early_return(int threads, int blocks) {
  int n_wrong = 0;
  for (const int n : {1, threads / 3, threads - 1}) {
    std::vector<int> out(threads, -1);
    FT_LAUNCH(leave_early, blocks, threads, nullptr, n, out.data());
    for (int i = 0; i < threads; ++i) n_wrong += out[i] != (i < n ? n - 1 - i : -1);
  }
  return n_wrong;
}

// Shared arrays of a template and of a plain kernel, which compilers place differently.
template <class T>
__global__ void count_defined(unsigned* n_defined) {
  __shared__ T values[100];
  T& mine = values[threadIdx.x % 100];
  if (mine == mine) atomicAdd(n_defined, 1u);
  __syncthreads();
  mine = 0;
}

__global__ void count_not_poisoned(unsigned* n_defined) {
  __align__(16) __shared__ unsigned char bytes[256];
  unsigned char& mine = bytes[threadIdx.x % 256];
  if (mine != 0xff) atomicAdd(n_defined, 1u);
  __syncthreads();
  mine = 0;
}

thread_local int kept = 0;

int run_garbage(int threads, int blocks) {
  unsigned n_defined = 0;
  kept = 12345;
  FT_LAUNCH(count_defined<double>, blocks, threads, nullptr, &n_defined);
  FT_LAUNCH(count_not_poisoned, blocks, threads, nullptr, &n_defined);
  return static_cast<int>(n_defined) + (kept != 12345);
}

__global__ void visit(unsigned* count, unsigned* n_done, unsigned* last) {
  const uint64_t block = blockIdx.x + uint64_t{gridDim.x} * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  atomicAdd(&count[block * blockDim.x * blockDim.y * blockDim.z + thread], 1u);
  __threadfence();
  const unsigned n_blocks = gridDim.x * gridDim.y * gridDim.z;
  if (__syncthreads_count(thread % 2) != int(blockDim.x * blockDim.y * blockDim.z / 2)) return;
  // The last block starts the counter anew.
  if (thread == 0 && atomicInc(n_done, n_blocks - 1) == n_blocks - 1) atomicExch(last, n_blocks);
}

int run_indices(int threads, int blocks) {
  const dim3 block(threads / 4, 2, 2), grid(blocks, 3, 2);
  std::vector<unsigned> count(size_t{block.x} * 4 * blocks * 6, 0);
  unsigned n_done = 0, last = 0;
  FT_LAUNCH(visit, grid, block, nullptr, count.data(), &n_done, &last);
  int n_wrong = (n_done != 0) + (last != 6u * blocks);
  for (const unsigned n : count) n_wrong += n != 1;
  return n_wrong;
}

// [4, 32] for each width: the source lanes of the four shuffles, then votes.
__global__ void shuffle_all(int width, int by, int* out) {
  const int lane = threadIdx.x;
  out[lane] = __shfl_sync(kAll, lane, by, width);
  out[32 + lane] = int(__shfl_up_sync(kAll, double(lane), by, width));
  out[64 + lane] = int(__shfl_down_sync(kAll, float(lane), by, width));
  out[96 + lane] = int(__shfl_xor_sync(kAll, unsigned(lane), by, width));
  out[128 + lane] = int(__ballot_sync(kAll, lane % width == by));
  // Both halves of the warp at their own operation.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  out[160 + lane] = lane < 16 ? __any_sync(half, lane == by) : __all_sync(half, lane >= by);
}

int run_shuffles(int, int) {
  int n_wrong = 0;
  for (const int width : {2, 4, 8, 16, 32}) {
    for (int by = 0; by < width; ++by) {
      int out[6][32];
      FT_LAUNCH(shuffle_all, 1, 32, nullptr, width, by, &out[0][0]);
      unsigned ballot = 0;
      for (int i = by; i < 32; i += width) ballot |= 1u << i;
      for (int i = 0; i < 32; ++i) {
        const int in_group = i % width, start = i - in_group;
        n_wrong += out[0][i] != start + by;
        n_wrong += out[1][i] != (in_group >= by ? i - by : i);
        n_wrong += out[2][i] != (in_group + by < width ? i + by : i);
        n_wrong += out[3][i] != (i ^ by);
        n_wrong += out[4][i] != int(ballot);
        n_wrong += out[5][i] != (i < 16 ? by < 16 : by <= 16);
      }
    }
  }
  return n_wrong;
}

struct Big {
  uint4 values[2046];
};

__global__ void read_big(const __grid_constant__ Big big, unsigned* n_right) {
  __syncthreads();
  const unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) % 2046;
  if (big.values[i].x == i && big.values[i].w == 7 * i) atomicAdd(n_right, 1u);
}

int run_big_argument(int threads, int blocks) {
  static Big big;
  for (unsigned i = 0; i < 2046; ++i) big.values[i] = make_uint4(i, 0, 0, 7 * i);
  unsigned n_right = 0;
  const auto kernel = read_big;
  FT_LAUNCH(kernel, blocks, threads, nullptr, big, &n_right);
  return threads * blocks - static_cast<int>(n_right);
}

__global__ void hash_order(unsigned* hash) {
  *hash = *hash * 31 + blockIdx.x * blockDim.x + threadIdx.x;
}

// Tells in which order blocks and threads ran.
int run_order(int threads, int blocks) {
  unsigned hash = 0;
  FT_LAUNCH(hash_order, blocks, threads, nullptr, &hash);
  return static_cast<int>(hash % 1000000);
}

// For timing: `samples waits 256 40000 1` switches 256 * 40000 times.
__global__ void wait_often(int n) {
  for (int i = 0; i < n; ++i) __syncthreads();
}

int run_waits(int threads, int n) {
  FT_LAUNCH(wait_often, 1, threads, nullptr, n);
  return 0;
}

constexpr struct {
  const char* name;
  int (*run)(int threads, int blocks);
} kSamples[] = {
    {"sums", run_sums},
    {"no_barrier_before_reading", run_block_sum<float, 2>},
    {"no_barrier_before_writing", run_block_sum<float, 1>},
    {"two_os_threads", run_two_os_threads},
    {"overflow", run_overflow},
    {"block_and_warp", run_misuse<Way::block_and_warp>},
    {"two_shuffles", run_misuse<Way::two_shuffles>},
    {"two_masks", run_misuse<Way::two_masks>},
    {"not_in_mask", run_misuse<Way::not_in_mask>},
    {"two_barriers", run_misuse<Way::two_barriers>},
    {"width", run_misuse<Way::width>},
    {"error", run_misuse<Way::error>},
    {"early_return", run_early_return},
    {"garbage", run_garbage},
    {"indices", run_indices},
    {"shuffles", run_shuffles},
    {"big_argument", run_big_argument},
    {"order", run_order},
    {"waits", run_waits},
};

}  // namespace

// NAME THREADS BLOCKS SEEDS: print the number of seeds with a wrong result; with 0 SEEDS, the
// result with the seed of the environment; or an error, and then whether the engine still works.
int main(int, char** arguments) {
  const std::string name = arguments[1];
  const int threads = std::atoi(arguments[2]), blocks = std::atoi(arguments[3]);
  const int n_seeds = std::atoi(arguments[4]);
  for (const auto& sample : kSamples) {
    if (name != sample.name) continue;
    try {
      int result = n_seeds == 0 ? sample.run(threads, blocks) : 0;
      for (int seed = 0; seed < n_seeds; ++seed) {
        fusedtricks::shim::set_seed(seed);
        result += sample.run(threads, blocks) != 0;
      }
      std::printf("%d\n", result);
      return 0;
    } catch (const std::exception& error) {
      const bool works = run_sums(threads, blocks) + run_garbage(threads, blocks) == 0;
      std::printf("%s\n%s\n", error.what(), works ? "still works" : "does not work any more");
      return 1;
    }
  }
  return 2;
}
