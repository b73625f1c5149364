// One tile of a matrix product a b^T whose rows are gathered into shared memory; prepended to conv.cu and winograd.cu.
//
// A thread block of 128 threads computes a tile of TM x TN. The sum advances in steps of DEPTH = 16 terms: in each, a
// strip of a (TM x 16) and one of b (TN x 16) come into shared memory, copied by the caller's `start_copies`. A
// pipeline stage is STRIPS steps between two barriers; copies run STAGES - 1 stages ahead of the products.
//
// Shared by the kernels; in the reference, NumPy's @ is in its place.

constexpr int DEPTH = 16, THREADS = 128;
constexpr int UNROLLED = 4;  // copies of a thread whose addresses are computed together

// Offset of a 16-byte chunk of a row in a strip, rows of 16 floats in four chunks. The XOR swizzle permutes the chunks
// from row pair to row pair, so that neither the copies nor the products below have bank conflicts.
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * DEPTH + 4 * (chunk ^ (row >> 1 & 3)); }

// The part of a strip that a thread copies: floats depth ... depth + V - 1 of the rows first, first + step, ... V = 4
// where four terms of the sum are contiguous in global memory, else 1.
template <int V>
struct StripCopy {
  int depth, first;
  static constexpr int step = V == 4 ? THREADS / 4 : THREADS / 16;

  __device__ StripCopy() {
    const int tid = threadIdx.x;
    depth = V == 4 ? tid % 4 * 4 : tid % 4 + tid / 32 % 4 * 4;
    first = V == 4 ? tid / 4 : tid / 4 % 8;
  }

  __device__ void copy(float* strip, int row, const float* from, bool valid) const {
    if (V == 4)
      copy16(strip + swizzled(row, depth / 4), from, valid);
    else
      copy4(strip + swizzled(row, depth / 4) + depth % 4, from, valid);
  }
};

// sums += a b^T for strips a (TM x 16) and b (TN x 16), in float32. A thread has a register tile of 8 rows, TM / 8
// apart, by COLS columns, ACROSS apart; a warp is 4 x 8 threads. Each term reads 8 + COLS floats from shared memory for
// 8 COLS multiply-adds; a multiprocessor can read 32 floats and do 128 multiply-adds per cycle. row(e), col(e): the
// position of sums[e] in the tile.
template <int TM, int TN>
struct Float32 {
  static constexpr int BLOCKS = 32768 / (TM * TN), STAGES = 3, STRIPS = 1;
  static constexpr int ACROSS = THREADS * 8 / TM, COLS = TN / ACROSS;

  static __device__ __forceinline__ int row(int e) {
    return threadIdx.x / 8 % 4 + threadIdx.x / 32 / (ACROSS / 8) * 4 + TM / 8 * (e / COLS);
  }

  static __device__ __forceinline__ int col(int e) {
    return threadIdx.x % 8 + threadIdx.x / 32 % (ACROSS / 8) * 8 + ACROSS * (e % COLS);
  }

  static __device__ __forceinline__ void multiply(float (&sums)[8 * COLS], const float* a, const float* b) {
#pragma unroll 2
    for (int pair = 0; pair < DEPTH / 2; pair++) {  // two terms at a time: four would need too many registers
      // Two terms of the thread's 8 rows of a, then of its columns of b one by one, times each other.
      float2 left[8];
#pragma unroll
      for (int i = 0; i < 8; i++) left[i] = *(const float2*)(a + swizzled(row(COLS * i), pair / 2) + pair % 2 * 2);
#pragma unroll
      for (int j = 0; j < COLS; j++) {
        const float2 right = *(const float2*)(b + swizzled(col(j), pair / 2) + pair % 2 * 2);
#pragma unroll
        for (int i = 0; i < 8; i++) sums[COLS * i + j] += left[i].x * right.x;
#pragma unroll
        for (int i = 0; i < 8; i++) sums[COLS * i + j] += left[i].y * right.y;
      }
    }
  }
};

// The same on tensor cores: factors are truncated to TF32, sums are float32. A warp has 64 x WIDE of the tile, in
// fragments of 16 x 8. The order of terms is free: lane t loads 4 t ... 4 t + 3 at once, where mma expects t and t + 4.
template <int TM, int TN>
struct TensorCore {
  static constexpr int BLOCKS = TM * TN == 128 * 128 ? 2 : 3, STAGES = 3, STRIPS = 2;
  static constexpr int WIDE = TM * TN / THREADS / 2, FRAGMENTS = WIDE / 8;

  static __device__ __forceinline__ int row(int e) {
    return threadIdx.x / 32 / (TN / WIDE) * 64 + threadIdx.x % 32 / 4 + e / (4 * FRAGMENTS) * 16 + e / 2 % 2 * 8;
  }

  static __device__ __forceinline__ int col(int e) {
    return threadIdx.x / 32 % (TN / WIDE) * WIDE + threadIdx.x % 4 * 2 + e / 4 % FRAGMENTS * 8 + e % 2;
  }

  static __device__ __forceinline__ void multiply(float (&sums)[16 * FRAGMENTS], const float* a, const float* b) {
    const int t = threadIdx.x % 4, first = threadIdx.x / 32 % (TN / WIDE) * WIDE + threadIdx.x % 32 / 4;
    // All fragments of b, then of a one by one, times each other.
    float4 right[FRAGMENTS];
#pragma unroll
    for (int j = 0; j < FRAGMENTS; j++) right[j] = *(const float4*)(b + swizzled(first + 8 * j, t));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float4 upper = *(const float4*)(a + swizzled(row(4 * FRAGMENTS * i), t));
      const float4 lower = *(const float4*)(a + swizzled(row(4 * FRAGMENTS * i) + 8, t));
#pragma unroll
      for (int j = 0; j < FRAGMENTS; j++)  // all before the second half: an mma on the same sums would have to wait
        mma_16x8x8(sums + 4 * (FRAGMENTS * i + j), {upper.x, lower.x, upper.y, lower.y}, {right[j].x, right[j].y});
#pragma unroll
      for (int j = 0; j < FRAGMENTS; j++)
        mma_16x8x8(sums + 4 * (FRAGMENTS * i + j), {upper.z, lower.z, upper.w, lower.w}, {right[j].z, right[j].w});
    }
  }
};

// The sums of a tile over `stages` pipeline stages. start_copies(a, b) starts the copies of the next strips of a and b;
// `strips` is shared memory for STAGES stages, used as a ring buffer.
template <template <int, int> class Product, int TM, int TN, class StartCopies>
__device__ __forceinline__ void accumulate_tile(float (&sums)[TM * TN / THREADS], float* strips, int stages,
                                                StartCopies start_copies) {
  constexpr int STAGES = Product<TM, TN>::STAGES, STRIP = (TM + TN) * DEPTH, STAGE = Product<TM, TN>::STRIPS * STRIP;
  // One stage: STRIPS strips of a and b.
  const auto begin_copies = [&](float* stage) {
#pragma unroll
    for (float* strip = stage; strip < stage + STAGE; strip += STRIP) start_copies(strip, strip + TM * DEPTH);
  };
  // Prologue: start the copies of the first STAGES - 1 stages.
  for (int k = 0; k < STAGES - 1; k++) {
    if (k < stages) begin_copies(strips + k * STAGE);
    commit_copies();
  }
  // Main loop: wait for a stage, start the copies of the one STAGES - 1 ahead, multiply.
  int now = 0;
  for (; stages > 0; stages--) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // this stage has arrived for all threads, and no thread reads the previous one any more
    if (stages >= STAGES) begin_copies(strips + (now == 0 ? STAGES - 1 : now - 1) * STAGE);
    commit_copies();
    const float* stage = strips + now * STAGE;
#pragma unroll
    for (const float* strip = stage; strip < stage + STAGE; strip += STRIP)
      Product<TM, TN>::multiply(sums, strip, strip + TM * DEPTH);
    now = now + 1 == STAGES ? 0 : now + 1;
  }
}
