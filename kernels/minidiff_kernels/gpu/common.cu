// What all kernels need: prepended to the file of each family before compilation. No header is needed.
//
// PTX instructions without a C++ equivalent are wrapped here, so that tests can run the same kernels on a CPU:
// tests/gpu_simulator/ has its own version of everything between #ifndef and #endif.
//
// Shared by the kernels; the reference needs no device code.

#ifndef SIMULATED

#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) T name[]

// Start an asynchronous copy (cp.async) of 16 or 4 bytes from global to shared memory; of zeros if not `valid`.
__device__ __forceinline__ void copy16(float* to, const float* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"((unsigned)__cvta_generic_to_shared(to)),
               "l"(from), "r"(valid ? 16 : 0));
}

__device__ __forceinline__ void copy4(float* to, const float* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"((unsigned)__cvta_generic_to_shared(to)),
               "l"(from), "r"(valid ? 4 : 0));
}

// End a group of copies; wait for all groups but the most recent LEFT.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n"); }

template <int LEFT>
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT) : "memory"); }

// d (16 x 8) += a (16 x 8) b (8 x 8) by one warp on its tensor core, which truncates each factor to TF32, ten bits of
// mantissa. Lane 4 g + t holds a[g][t], a[g + 8][t], a[g][t + 4], a[g + 8][t + 4];
// b[t][g], b[t + 4][g]; and d[g][2 t], d[g][2 t + 1], d[g + 8][2 t], d[g + 8][2 t + 1].
__device__ __forceinline__ void mma_16x8x8(float* d, const float (&a)[4], const float (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
                 "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

#endif

constexpr unsigned ALL = 0xffffffffu;  // all lanes of a warp take part

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The sum of `value` over a thread block of up to 1024 threads, a multiple of 32, returned to all of them. All threads
// call it, and only once in a kernel.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double parts[32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < blockDim.x / 32; i++) total += parts[i];
  return total;
}
