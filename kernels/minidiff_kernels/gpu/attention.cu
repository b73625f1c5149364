// Attention in tiles, after FlashAttention (Dao et al. 2022, arXiv:2205.14135): scores never leave the multiprocessor.
//
// q, o (N, T, heads, D)   k, v (N, S, heads, D)   lse, delta (N, heads, T)
// A block takes T_ queries (or keys) of one head and goes over the other side, T_ rows at a time. Rows lie in shared
// memory as (T_, WIDTH + 4), with zeros beyond D: WIDTH is the head width rounded up to 32, 64 or 128, and the four
// numbers keep rows that are read together out of each other's banks. Threads are 16 x 16; each has the scores of rows
// y, y + 16, ... with rows x, x + 16, ..., and of an output the rows y, y + 16, ... at columns x, x + 16, ...

template <int WIDTH>
struct Tile {
  static constexpr int SIDE = WIDTH == 32 ? 64 : 32;  // what fits in 96 KB of shared memory, backward too
  static constexpr int EACH = SIDE / 16, COLUMNS = WIDTH / 16, ROW = WIDTH + 4, SIZE = SIDE * ROW;
  static constexpr int SCORES_ROW = SIDE + 4, SCORES = SIDE * SCORES_ROW;
};

// SIDE rows of one head, from `first` on, into shared memory; `rows` of them there are.
template <int WIDTH>
__device__ __forceinline__ void load(float* tile, const float* from, int first, int rows, int heads, int D) {
  for (int i = threadIdx.x; i < Tile<WIDTH>::SIDE * WIDTH; i += 256) {
    const int row = i / WIDTH, d = i % WIDTH;
    const bool there = first + row < rows && d < D;
    tile[row * Tile<WIDTH>::ROW + d] = there ? from[(long long)(first + row) * heads * D + d] : 0;
  }
}

// products[i][j] = a[y + 16 i] . b[x + 16 j]
template <int WIDTH>
__device__ __forceinline__ void dot(float (&products)[Tile<WIDTH>::EACH][Tile<WIDTH>::EACH], const float* a,
                                    const float* b) {
  constexpr int EACH = Tile<WIDTH>::EACH, ROW = Tile<WIDTH>::ROW;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  for (int i = 0; i < EACH; i++)
    for (int j = 0; j < EACH; j++) products[i][j] = 0;
#pragma unroll 4
  for (int d = 0; d < WIDTH; d += 4) {
    float4 left[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) left[i] = *(const float4*)(a + (y + 16 * i) * ROW + d);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const float4 right = *(const float4*)(b + (x + 16 * j) * ROW + d);
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        float& sum = products[i][j];
        sum += left[i].x * right.x;
        sum += left[i].y * right.y;
        sum += left[i].z * right.z;
        sum += left[i].w * right.w;
      }
    }
  }
}

// out[i][j] += sum over rows r of weights[y + 16 i][r] tile[r][x + 16 j]
template <int WIDTH>
__device__ __forceinline__ void mix(float (&out)[Tile<WIDTH>::EACH][Tile<WIDTH>::COLUMNS], const float* weights,
                                    const float* tile) {
  constexpr int EACH = Tile<WIDTH>::EACH, COLUMNS = Tile<WIDTH>::COLUMNS;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 2
  for (int r = 0; r < Tile<WIDTH>::SIDE; r += 4) {
    float4 left[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) left[i] = *(const float4*)(weights + (y + 16 * i) * Tile<WIDTH>::SCORES_ROW + r);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      const float* column = tile + r * Tile<WIDTH>::ROW + x + 16 * j;
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        float& sum = out[i][j];
        sum += left[i].x * column[0];
        sum += left[i].y * column[Tile<WIDTH>::ROW];
        sum += left[i].z * column[2 * Tile<WIDTH>::ROW];
        sum += left[i].w * column[3 * Tile<WIDTH>::ROW];
      }
    }
  }
}

// What the 16 threads of a row have, as one number.
template <class Join>
__device__ __forceinline__ float across(float value, Join join) {
  for (int step = 8; step > 0; step /= 2) value = join(value, __shfl_xor_sync(ALL, value, step));
  return value;
}

// The thread's numbers of a tile of (rows, D), times scale for each row.
template <int WIDTH>
__device__ __forceinline__ void store(float* to, const float (&out)[Tile<WIDTH>::EACH][Tile<WIDTH>::COLUMNS],
                                      const float* scale, int first, int rows, int heads, int D) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < Tile<WIDTH>::EACH; i++)
#pragma unroll
    for (int j = 0; j < Tile<WIDTH>::COLUMNS; j++) {
      const int row = first + y + 16 * i, d = x + 16 * j;
      if (row < rows && d < D) to[(long long)(row) * heads * D + d] = out[i][j] * scale[i];
    }
}

// Where head blockIdx.x of (N, rows, heads, D) begins; blockIdx.x counts pictures and heads.
__device__ __forceinline__ long long head(int rows, int heads, int D) {
  return ((long long)(blockIdx.x / heads) * rows * heads + blockIdx.x % heads) * D;
}

constexpr float UNSEEN = -3e38f;  // exp of it is zero

// Whether a query sees a key, of S: if causal, those up to its own place alone.
__device__ __forceinline__ bool sees(int query, int key, int S, int causal) {
  return key < S && (!causal || key <= query);
}

// The softmax of a row is known only at its end. Until then: `largest` so far, sums relative to exp(largest), and when
// a larger score comes, all is scaled down.
template <int WIDTH>
__device__ __forceinline__ void attend(const float* q, const float* k, const float* v, float* o, float* lse, int T,
                                       int S, int heads, int D, float scale, int causal) {
  constexpr int SIDE = Tile<WIDTH>::SIDE, EACH = Tile<WIDTH>::EACH, COLUMNS = Tile<WIDTH>::COLUMNS;
  DYNAMIC_SHARED(float, memory);
  float *queries = memory, *keys = queries + Tile<WIDTH>::SIZE, *values = keys + Tile<WIDTH>::SIZE;
  float* weights = values + Tile<WIDTH>::SIZE;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = blockIdx.y * SIDE;
  load<WIDTH>(queries, q + head(T, heads, D), first, T, heads, D);

  float out[EACH][COLUMNS] = {}, largest[EACH], total[EACH] = {};
  for (int i = 0; i < EACH; i++) largest[i] = UNSEEN;
  for (int key = 0; key < S; key += SIDE) {
    __syncthreads();  // nobody reads the last keys and values any more
    load<WIDTH>(keys, k + head(S, heads, D), key, S, heads, D);
    load<WIDTH>(values, v + head(S, heads, D), key, S, heads, D);
    __syncthreads();
    float s[EACH][EACH];
    dot<WIDTH>(s, queries, keys);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      float larger = largest[i];
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        s[i][j] = sees(first + y + 16 * i, key + x + 16 * j, S, causal) ? s[i][j] * scale : UNSEEN;
        larger = fmaxf(larger, s[i][j]);
      }
      larger = across(larger, [](float a, float b) { return fmaxf(a, b); });
      const float shrink = expf(largest[i] - larger);
      largest[i] = larger, total[i] *= shrink;
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) out[i][j] *= shrink;
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        const float weight = sees(first + y + 16 * i, key + x + 16 * j, S, causal) ? expf(s[i][j] - larger) : 0;
        total[i] += weight;
        weights[(y + 16 * i) * Tile<WIDTH>::SCORES_ROW + x + 16 * j] = weight;
      }
    }
    __syncthreads();  // all weights are there
    mix<WIDTH>(out, weights, values);
  }

  float scales[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const float sum = across(total[i], [](float a, float b) { return a + b; });
    scales[i] = 1 / sum;
    if (x == 0 && first + y + 16 * i < T) lse[blockIdx.x * T + first + y + 16 * i] = largest[i] + logf(sum);
  }
  store<WIDTH>(o + head(T, heads, D), out, scales, first, T, heads, D);
}

// delta[t] = do[t] . o[t]; a warp for every row, blockIdx.x counts pictures and heads.
extern "C" __global__ void __launch_bounds__(256)
    attention_delta(const float* dout, const float* o, float* delta, int T, int heads, int D) {
  const int t = blockIdx.y * 8 + threadIdx.x / 32;
  float sum = 0;
  if (t < T)
    for (int d = threadIdx.x % 32; d < D; d += 32) {
      const long long i = head(T, heads, D) + (long long)(t) * heads * D + d;
      sum += dout[i] * o[i];
    }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
  if (t < T && threadIdx.x % 32 == 0) delta[blockIdx.x * T + t] = sum;
}

// dq = ds k, for a tile of queries; p = exp(s - lse), ds = p (do v^T - delta) scale.
template <int WIDTH>
__device__ __forceinline__ void gradient_of_queries(const float* dout, const float* q, const float* k, const float* v,
                                                    const float* lse, const float* delta, float* dq, int T, int S,
                                                    int heads, int D, float scale, int causal) {
  constexpr int SIDE = Tile<WIDTH>::SIDE, EACH = Tile<WIDTH>::EACH, COLUMNS = Tile<WIDTH>::COLUMNS;
  DYNAMIC_SHARED(float, memory);
  float *queries = memory, *gradients = queries + Tile<WIDTH>::SIZE, *keys = gradients + Tile<WIDTH>::SIZE;
  float *values = keys + Tile<WIDTH>::SIZE, *weights = values + Tile<WIDTH>::SIZE;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = blockIdx.y * SIDE;
  load<WIDTH>(queries, q + head(T, heads, D), first, T, heads, D);
  load<WIDTH>(gradients, dout + head(T, heads, D), first, T, heads, D);

  float out[EACH][COLUMNS] = {}, ones[EACH];
  for (int i = 0; i < EACH; i++) ones[i] = 1;
  for (int key = 0; key < S; key += SIDE) {
    __syncthreads();  // nobody reads the last keys and values any more
    load<WIDTH>(keys, k + head(S, heads, D), key, S, heads, D);
    load<WIDTH>(values, v + head(S, heads, D), key, S, heads, D);
    __syncthreads();
    float s[EACH][EACH], dp[EACH][EACH];
    dot<WIDTH>(s, queries, keys);
    dot<WIDTH>(dp, gradients, values);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int row = min(first + y + 16 * i, T - 1);
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        const bool seen = sees(first + y + 16 * i, key + x + 16 * j, S, causal);
        const float p = expf((seen ? s[i][j] * scale : UNSEEN) - lse[blockIdx.x * T + row]);  // NaN if lse is, seen or not
        const float ds = p * (dp[i][j] - delta[blockIdx.x * T + row]) * scale;
        weights[(y + 16 * i) * Tile<WIDTH>::SCORES_ROW + x + 16 * j] = ds;
      }
    }
    __syncthreads();  // all weights are there
    mix<WIDTH>(out, weights, keys);
  }
  store<WIDTH>(dq + head(T, heads, D), out, ones, first, T, heads, D);
}

// dk = ds^T q and dv = p^T do, for a tile of keys; rows and columns of the scores have changed places.
template <int WIDTH>
__device__ __forceinline__ void gradient_of_keys(const float* dout, const float* q, const float* k, const float* v,
                                                 const float* lse, const float* delta, float* dk, float* dv, int T,
                                                 int S, int heads, int D, float scale, int causal) {
  constexpr int SIDE = Tile<WIDTH>::SIDE, EACH = Tile<WIDTH>::EACH, COLUMNS = Tile<WIDTH>::COLUMNS;
  DYNAMIC_SHARED(float, memory);
  float *keys = memory, *values = keys + Tile<WIDTH>::SIZE, *queries = values + Tile<WIDTH>::SIZE;
  float *gradients = queries + Tile<WIDTH>::SIZE, *weights = gradients + Tile<WIDTH>::SIZE;
  float* weights_of_scores = weights + Tile<WIDTH>::SCORES;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = blockIdx.y * SIDE;
  load<WIDTH>(keys, k + head(S, heads, D), first, S, heads, D);
  load<WIDTH>(values, v + head(S, heads, D), first, S, heads, D);

  float out_k[EACH][COLUMNS] = {}, out_v[EACH][COLUMNS] = {}, ones[EACH];
  for (int i = 0; i < EACH; i++) ones[i] = 1;
  for (int query = 0; query < T; query += SIDE) {
    __syncthreads();  // nobody reads the last queries any more
    load<WIDTH>(queries, q + head(T, heads, D), query, T, heads, D);
    load<WIDTH>(gradients, dout + head(T, heads, D), query, T, heads, D);
    __syncthreads();
    float s[EACH][EACH], dp[EACH][EACH];
    dot<WIDTH>(s, keys, queries);
    dot<WIDTH>(dp, values, gradients);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int column = query + x + 16 * j;
      const float lse_ = lse[blockIdx.x * T + min(column, T - 1)], delta_ = delta[blockIdx.x * T + min(column, T - 1)];
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const float score = sees(column, first + y + 16 * i, S, causal) ? s[i][j] * scale : UNSEEN;
        const float p = column < T ? expf(score - lse_) : 0;
        const int place = (y + 16 * i) * Tile<WIDTH>::SCORES_ROW + x + 16 * j;
        weights[place] = p;
        weights_of_scores[place] = p * (dp[i][j] - delta_) * scale;
      }
    }
    __syncthreads();  // all weights are there
    mix<WIDTH>(out_v, weights, gradients);
    mix<WIDTH>(out_k, weights_of_scores, queries);
  }
  store<WIDTH>(dk + head(S, heads, D), out_k, ones, first, S, heads, D);
  store<WIDTH>(dv + head(S, heads, D), out_v, ones, first, S, heads, D);
}

#define FOR_WIDTH(WIDTH)                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      attend_##WIDTH(const float* q, const float* k, const float* v, float* o, float* lse, int T, int S, int heads,   \
                     int D, float scale, int causal) {                                                                            \
    attend<WIDTH>(q, k, v, o, lse, T, S, heads, D, scale, causal);                                                            \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      gradient_of_queries_##WIDTH(const float* dout, const float* q, const float* k, const float* v, const float* lse, \
                                  const float* delta, float* dq, int T, int S, int heads, int D, float scale, int causal) {       \
    gradient_of_queries<WIDTH>(dout, q, k, v, lse, delta, dq, T, S, heads, D, scale, causal);                                 \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) gradient_of_keys_##WIDTH(                                         \
      const float* dout, const float* q, const float* k, const float* v, const float* lse, const float* delta,        \
      float* dk, float* dv, int T, int S, int heads, int D, float scale, int causal) {                                            \
    gradient_of_keys<WIDTH>(dout, q, k, v, lse, delta, dk, dv, T, S, heads, D, scale, causal);                                \
  }

FOR_WIDTH(32)
FOR_WIDTH(64)
FOR_WIDTH(128)
