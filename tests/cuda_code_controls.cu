// Small kernels for test_cuda_code.py: all but two have a fault that their name tells.
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(256, 2) name
#define ARGS const __grid_constant__ Args args

struct Args {
  float4 *out, *in;
  float* scalars;
  double* doubles;
  unsigned n;
  int table[64];
};

struct LargeArgs : Args {
  int more[1000];
};

struct Pack {
  float4 low, high;
};

__device__ Pack load(const float4* data, unsigned i) { return {data[2 * i], data[2 * i + 1]}; }
__device__ void store(float4* data, unsigned i, const Pack& pack) {
  data[2 * i] = pack.low;
  data[2 * i + 1] = pack.high;
}
__device__ float sum(const float4& quad) { return quad.x + quad.y + quad.z + quad.w; }
__device__ Pack operator+(const Pack& a, const Pack& b) {
  return {
      {a.low.x + b.low.x, a.low.y + b.low.y, a.low.z + b.low.z, a.low.w + b.low.w},
      {a.high.x + b.high.x, a.high.y + b.high.y, a.high.z + b.high.z, a.high.w + b.high.w}};
}

// Calls body(i).
template <class Body>
__device__ void loop(const Args& args, const Body& body) {
#pragma unroll 1
  for (unsigned i = args.table[blockIdx.x & 63] + threadIdx.x; i < args.n; i += 256) body(i);
}

// Adds what change(a, b) makes of two packs.
template <class Change>
__device__ void update(const Args& args, const Change& change) {
  loop(args, [&](unsigned i) {
    Pack a = load(args.out, i), b = load(args.in, i);
    change(a, b);
    store(args.out, i, a + b);
  });
}

__device__ void update(const Args& args) {
  update(args, [](Pack&, Pack&) {});
}

KERNEL(right)(ARGS) { update(args); }

// Values that live through the loop, more than there are registers.
template <int kCount>
__device__ void update_and_hold(const Args& args) {
  float held[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) held[k] = args.scalars[k * 256 + threadIdx.x];
  update(args);
#pragma unroll
  for (int k = 0; k < kCount; ++k) args.scalars[k * 256 + threadIdx.x] = held[k];
}

extern "C" __global__ void __launch_bounds__(1024) spills(ARGS) { update_and_hold<120>(args); }
extern "C" __global__ void __launch_bounds__(256) registers(ARGS) { update_and_hold<120>(args); }

KERNEL(stack)(Args args) {
  args.table[threadIdx.x & 63] = 1;
  update(args);
}

KERNEL(shared)(ARGS) {
  __shared__ float all[256];
  all[threadIdx.x] = args.scalars[threadIdx.x];
  __syncthreads();
  update(args, [&](Pack& a, Pack&) { a.low.x = all[255 - threadIdx.x]; });
}

KERNEL(arguments)(const __grid_constant__ LargeArgs args) { update(args); }

KERNEL(contraction)(ARGS) {
  update(args, [](Pack& a, Pack& b) { a.low.x = a.low.x * b.low.x + b.low.y; });
}

KERNEL(inexact)(ARGS) {
  update(args, [](Pack& a, Pack& b) { a.low.x = __fdividef(a.low.x, b.low.x); });
}

KERNEL(some_loads)(ARGS) {
  loop(args, [&](unsigned i) {
    Pack a = load(args.out, i);
    a.low.x += args.scalars[4 * i] + args.scalars[4 * i + 1];
    store(args.out, i, a);
  });
}

KERNEL(all_loads)(ARGS) {
  loop(args, [&](unsigned i) { args.scalars[i] += 1; });
}

KERNEL(order)(ARGS) {
  loop(args, [&](unsigned i) {
    Pack a = load(args.out, i);
    // The store may change what is loaded next.
    args.scalars[i] = sum(a.low);
    store(args.out, i, a + load(args.in, i));
  });
}

KERNEL(stores)(ARGS) {
  loop(args, [&](unsigned i) {
    const Pack a = load(args.out, i) + load(args.in, i);
    args.out[2 * i] = a.low;
    args.scalars[i] = sum(a.high);
  });
}

KERNEL(float64)(ARGS) {
  update(args, [](Pack& a, Pack&) { a.low.x = a.low.x * 1.1; });
}

__device__ __noinline__ float scale(float value) { return static_cast<float>(value * 1.1); }

KERNEL(called_float64)(ARGS) {
  update(args, [](Pack& a, Pack&) { a.low.x = scale(a.low.x); });
}

KERNEL(atomics)(ARGS) {
  update(args);
  atomicAdd(args.scalars, 1.0f);
}

KERNEL(returning_atomics)(ARGS) {
  update(args);
  args.scalars[1] = atomicAdd(args.scalars, 1.0f);
}

KERNEL(compared_atomics)(ARGS) {
  update(args);
  auto* const words = reinterpret_cast<unsigned*>(args.scalars);
  words[1] = atomicCAS(words, 1u, args.n);
}

KERNEL(table)(ARGS) {
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < args.n; i += 256) {
    store(args.out, i, load(args.out, i) + load(args.in, i));
  }
}

template <class Sum>
__device__ Sum add_up(const Args& args, float& largest) {
  Sum total = 0;
  loop(args, [&](unsigned i) {
    const Pack pack = load(args.in, i);
    const float values[] = {pack.low.x,  pack.low.y,  pack.low.z,  pack.low.w,
                            pack.high.x, pack.high.y, pack.high.z, pack.high.w};
    for (const float value : values) {
      total += static_cast<Sum>(value);
      largest = fmaxf(largest, value);
    }
  });
  return total;
}

// As in Note [Float sums] of statistics.cuh.
KERNEL(right_sums)(ARGS) {
  float largest = 0;
  double total = add_up<float>(args, largest);
  if (!(largest > 1e-15f && largest < 1e17f)) total = add_up<double>(args, largest);
  args.doubles[threadIdx.x] = total;
}

KERNEL(other_sums)(ARGS) {
  float largest = 0;
  double total = add_up<float>(args, largest);
  if (largest < 1e-3f) total = add_up<double>(args, largest);
  args.doubles[threadIdx.x] = total;
}
