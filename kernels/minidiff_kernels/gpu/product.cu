// A tile of a product of two matrices, a b^T, whose rows are gathered into shared memory; it stands in front of conv.cu
// and winograd.cu.
//
// A block of 128 threads computes TM x TN numbers of the result. The sum goes in steps of DEPTH = 16: step by step, a
// strip of TM rows and one of TN, 16 long each, come into shared memory, from wherever the caller's `fetch` says. A stage
// is STRIPS steps between two barriers; copies run STAGES - 1 stages ahead of the products.

constexpr int DEPTH = 16, THREADS = 128;
constexpr int UNROLLED = 4;  // copies whose addresses are worked out side by side

// Strips lie in shared memory as rows of 16, each in four chunks of 16 bytes. Chunks change places from row pair to row
// pair, so that neither the copies nor either of the products below meet in a bank.
__device__ __forceinline__ int spot(int row, int chunk) { return row * DEPTH + 4 * (chunk ^ (row >> 1 & 3)); }

// Which numbers of a strip a thread copies: four in a row along the sum if they lie so in memory (V = 4), or single
// ones (V = 1). `depth` is the place along the sum, the same for all its rows first, first + step, ...
template <int V>
struct Share {
  int depth, first;
  static constexpr int step = V == 4 ? THREADS / 4 : THREADS / 16;

  __device__ Share() {
    const int tid = threadIdx.x;
    depth = V == 4 ? tid % 4 * 4 : tid % 4 + tid / 32 % 4 * 4;
    first = V == 4 ? tid / 4 : tid / 4 % 8;
  }

  __device__ void copy(float* strip, int row, const float* from, bool there) const {
    if (V == 4)
      copy16(strip + spot(row, depth / 4), from, there);
    else
      copy4(strip + spot(row, depth / 4) + depth % 4, from, there);
  }
};

// sums += a b^T for strips a (TM x 16) and b (TN x 16). A thread has 8 rows by COLS columns of the tile, each TM / 8 and
// ACROSS apart; a warp is 4 x 8 threads. Out of shared memory come 8 + COLS numbers for 8 COLS products: what a
// multiprocessor can read at a time bounds it no less than what it can multiply.
template <int TM, int TN>
struct Float32 {
  static constexpr int BLOCKS = 32768 / (TM * TN), STAGES = 3, STRIPS = 1, ACROSS = THREADS * 8 / TM, COLS = TN / ACROSS;

  static __device__ __forceinline__ int row(int e) {
    return threadIdx.x / 8 % 4 + threadIdx.x / 32 / (ACROSS / 8) * 4 + TM / 8 * (e / COLS);
  }

  static __device__ __forceinline__ int col(int e) {
    return threadIdx.x % 8 + threadIdx.x / 32 % (ACROSS / 8) * 8 + ACROSS * (e % COLS);
  }

  static __device__ __forceinline__ void multiply(float (&sums)[8 * COLS], const float* a, const float* b) {
#pragma unroll 2
    for (int pair = 0; pair < DEPTH / 2; pair++) {  // two steps of the sum at a time: more would need too many registers
      float2 left[8];
#pragma unroll
      for (int i = 0; i < 8; i++) left[i] = *(const float2*)(a + spot(row(COLS * i), pair / 2) + pair % 2 * 2);
#pragma unroll
      for (int j = 0; j < COLS; j++) {
        const float2 right = *(const float2*)(b + spot(col(j), pair / 2) + pair % 2 * 2);
#pragma unroll
        for (int i = 0; i < 8; i++) sums[COLS * i + j] += left[i].x * right.x;
#pragma unroll
        for (int i = 0; i < 8; i++) sums[COLS * i + j] += left[i].y * right.y;
      }
    }
  }
};

// The same on tensor cores: factors are cut to TF32, sums stay float32. A warp has 64 x WIDE numbers of the tile.
// The order within a sum is free: lane t takes 4 t ... 4 t + 3 as one load, where the manual says t and t + 4.
template <int TM, int TN>
struct TensorCore {
  static constexpr int BLOCKS = TM * TN == 128 * 128 ? 2 : 3, STAGES = 3, STRIPS = 2, WIDE = TM * TN / THREADS / 2, EACH = WIDE / 8;

  static __device__ __forceinline__ int row(int e) {
    return threadIdx.x / 32 / (TN / WIDE) * 64 + threadIdx.x % 32 / 4 + e / (4 * EACH) * 16 + e / 2 % 2 * 8;
  }

  static __device__ __forceinline__ int col(int e) {
    return threadIdx.x / 32 % (TN / WIDE) * WIDE + threadIdx.x % 4 * 2 + e / 4 % EACH * 8 + e % 2;
  }

  static __device__ __forceinline__ void multiply(float (&sums)[16 * EACH], const float* a, const float* b) {
    const int t = threadIdx.x % 4, first = threadIdx.x / 32 % (TN / WIDE) * WIDE + threadIdx.x % 32 / 4;
    float4 right[EACH];
#pragma unroll
    for (int j = 0; j < EACH; j++) right[j] = *(const float4*)(b + spot(first + 8 * j, t));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float4 upper = *(const float4*)(a + spot(row(4 * EACH * i), t));
      const float4 lower = *(const float4*)(a + spot(row(4 * EACH * i) + 8, t));
#pragma unroll
      for (int j = 0; j < EACH; j++)  // all of them before any again: the next sum of the same numbers has to wait
        multiply_16x8x8(sums + 4 * (EACH * i + j), {upper.x, lower.x, upper.y, lower.y}, {right[j].x, right[j].y});
#pragma unroll
      for (int j = 0; j < EACH; j++)
        multiply_16x8x8(sums + 4 * (EACH * i + j), {upper.z, lower.z, upper.w, lower.w}, {right[j].z, right[j].w});
    }
  }
};

// The whole sum of a tile. fetch(a, b) starts the copies of the next strips; a stage is STRIPS of each.
template <template <int, int> class Product, int TM, int TN, class Fetch>
__device__ __forceinline__ void sum_up(float (&sums)[TM * TN / THREADS], float* strips, int stages, Fetch fetch) {
  constexpr int STAGES = Product<TM, TN>::STAGES, STRIP = (TM + TN) * DEPTH, STAGE = Product<TM, TN>::STRIPS * STRIP;
  const auto begin_copies = [&](float* stage) {
#pragma unroll
    for (float* strip = stage; strip < stage + STAGE; strip += STRIP) fetch(strip, strip + TM * DEPTH);
  };
  for (int k = 0; k < STAGES - 1; k++) {
    if (k < stages) begin_copies(strips + k * STAGE);
    end_copies();
  }
  int now = 0;
  for (; stages > 0; stages--) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // all copies of this stage are there, and nobody reads the strips of the last one any more
    if (stages >= STAGES) begin_copies(strips + (now == 0 ? STAGES - 1 : now - 1) * STAGE);
    end_copies();
    const float* stage = strips + now * STAGE;
#pragma unroll
    for (const float* strip = stage; strip < stage + STAGE; strip += STRIP)
      Product<TM, TN>::multiply(sums, strip, strip + TM * DEPTH);
    now = now + 1 == STAGES ? 0 : now + 1;
  }
}
