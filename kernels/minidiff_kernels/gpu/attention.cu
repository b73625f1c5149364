// Attention in tiles, after FlashAttention (Dao et al. 2022, arXiv:2205.14135): scores stay on the multiprocessor.
// Between forward and backward only the log-sum-exp is kept, as in FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//
// q, o (N, T, heads, D)   k, v (N, S, heads, D)   lse, delta (N, heads, T)   symbols as in reference/attention.py, but
// do is dout: `do` is a keyword. q_tile, k_tile, ... are tiles in shared memory; o_sums, dq_sums, ... a thread's sums.
//
// A thread block takes SIDE queries (or keys) of one head and loops over the keys (or queries), SIDE at a time. A tile
// of rows lies in shared memory as (SIDE, WIDTH + 4), zero beyond D: WIDTH is D rounded up to 32, 64 or 128, and the
// padding of 4 avoids bank conflicts. Threads are 16 x 16; thread (x, y) has the scores of rows y, y + 16, ... with
// rows x, x + 16, ..., and of an output the rows y, y + 16, ... at columns x, x + 16, ...

template <int WIDTH>
struct Tile {
  static constexpr int SIDE = WIDTH == 32 ? 64 : 32;  // the backward pass, too, fits in 96 KB of shared memory
  static constexpr int EACH = SIDE / 16, COLUMNS = WIDTH / 16, ROW = WIDTH + 4, SIZE = SIDE * ROW;
  static constexpr int SCORES_ROW = SIDE + 4, SCORES = SIDE * SCORES_ROW;
};

// Load SIDE rows of one head from row `first` on into shared memory; zero from row `rows` on.
template <int WIDTH>
__device__ __forceinline__ void load(float* tile, const float* from, int first, int rows, int heads, int D) {
  for (int i = threadIdx.x; i < Tile<WIDTH>::SIDE * WIDTH; i += 256) {
    const int row = i / WIDTH, d = i % WIDTH;
    const bool valid = first + row < rows && d < D;
    tile[row * Tile<WIDTH>::ROW + d] = valid ? from[(long long)(first + row) * heads * D + d] : 0;
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

// sums[i][j] += sum over rows r of p[y + 16 i][r] tile[r][x + 16 j]; p (SIDE, SCORES_ROW) in shared memory
template <int WIDTH>
__device__ __forceinline__ void accumulate(float (&sums)[Tile<WIDTH>::EACH][Tile<WIDTH>::COLUMNS], const float* p_tile,
                                    const float* tile) {
  constexpr int EACH = Tile<WIDTH>::EACH, COLUMNS = Tile<WIDTH>::COLUMNS;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 2
  for (int r = 0; r < Tile<WIDTH>::SIDE; r += 4) {
    float4 left[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) left[i] = *(const float4*)(p_tile + (y + 16 * i) * Tile<WIDTH>::SCORES_ROW + r);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      const float* column = tile + r * Tile<WIDTH>::ROW + x + 16 * j;
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        float& sum = sums[i][j];
        sum += left[i].x * column[0];
        sum += left[i].y * column[Tile<WIDTH>::ROW];
        sum += left[i].z * column[2 * Tile<WIDTH>::ROW];
        sum += left[i].w * column[3 * Tile<WIDTH>::ROW];
      }
    }
  }
}

// The values of the 16 threads of a row, reduced by `join`.
template <class Join>
__device__ __forceinline__ float reduce_row(float value, Join join) {
  for (int step = 8; step > 0; step /= 2) value = join(value, __shfl_xor_sync(ALL, value, step));
  return value;
}

// Store the thread's part of a tile of rows, row i times scale[i].
template <int WIDTH>
__device__ __forceinline__ void store(float* to, const float (&sums)[Tile<WIDTH>::EACH][Tile<WIDTH>::COLUMNS],
                                      const float* scale, int first, int rows, int heads, int D) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < Tile<WIDTH>::EACH; i++)
#pragma unroll
    for (int j = 0; j < Tile<WIDTH>::COLUMNS; j++) {
      const int row = first + y + 16 * i, d = x + 16 * j;
      if (row < rows && d < D) to[(long long)(row) * heads * D + d] = sums[i][j] * scale[i];
    }
}

// The offset of head blockIdx.x in (N, rows, heads, D); blockIdx.x = n * heads + head.
__device__ __forceinline__ long long head_offset(int rows, int heads, int D) {
  return ((long long)(blockIdx.x / heads) * rows * heads + blockIdx.x % heads) * D;
}

constexpr float MASKED = -3e38f;  // a score whose exponential is zero

// Whether a query attends to a key, out of S: if causal, only to keys up to its own position.
__device__ __forceinline__ bool attends(int query, int key, int S, int causal) {
  return key < S && (!causal || key <= query);
}

// Online softmax: row_max is the largest score so far, and row_sum and o_sums are relative to exp(row_max). When a
// larger score comes, both are rescaled by exp(row_max - new_max).
template <int WIDTH>
__device__ __forceinline__ void attention(const float* q, const float* k, const float* v, float* o, float* lse, int T,
                                       int S, int heads, int D, float scale, int causal) {
  constexpr int SIDE = Tile<WIDTH>::SIDE, EACH = Tile<WIDTH>::EACH, COLUMNS = Tile<WIDTH>::COLUMNS;
  DYNAMIC_SHARED(float, memory);
  float *q_tile = memory, *k_tile = q_tile + Tile<WIDTH>::SIZE, *v_tile = k_tile + Tile<WIDTH>::SIZE;
  float* p_tile = v_tile + Tile<WIDTH>::SIZE;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = blockIdx.y * SIDE;
  // The tile of queries, loaded once.
  load<WIDTH>(q_tile, q + head_offset(T, heads, D), first, T, heads, D);

  // For each tile of keys: load, s = q k^T, online softmax, o_sums += p v.
  float o_sums[EACH][COLUMNS] = {}, row_max[EACH], row_sum[EACH] = {};
  for (int i = 0; i < EACH; i++) row_max[i] = MASKED;
  for (int key = 0; key < S; key += SIDE) {
    __syncthreads();  // the previous keys and values are no longer read
    load<WIDTH>(k_tile, k + head_offset(S, heads, D), key, S, heads, D);
    load<WIDTH>(v_tile, v + head_offset(S, heads, D), key, S, heads, D);
    __syncthreads();
    float s[EACH][EACH];
    dot<WIDTH>(s, q_tile, k_tile);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      // The scores, scaled and masked, and the new maximum of the row.
      float new_max = row_max[i];
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        s[i][j] = attends(first + y + 16 * i, key + x + 16 * j, S, causal) ? s[i][j] * scale : MASKED;
        new_max = fmaxf(new_max, s[i][j]);
      }
      new_max = reduce_row(new_max, [](float a, float b) { return fmaxf(a, b); });
      // Rescale what was summed so far.
      const float correction = expf(row_max[i] - new_max);
      row_max[i] = new_max, row_sum[i] *= correction;
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) o_sums[i][j] *= correction;
      // p = exp(s - max), to shared memory.
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        const float p = attends(first + y + 16 * i, key + x + 16 * j, S, causal) ? expf(s[i][j] - new_max) : 0;
        row_sum[i] += p;
        p_tile[(y + 16 * i) * Tile<WIDTH>::SCORES_ROW + x + 16 * j] = p;
      }
    }
    __syncthreads();  // p is complete
    accumulate<WIDTH>(o_sums, p_tile, v_tile);
  }

  // o = o_sums / row_sum and lse = row_max + log(row_sum), row_sum being summed over the row's threads first.
  float inverse_sums[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const float sum = reduce_row(row_sum[i], [](float a, float b) { return a + b; });
    inverse_sums[i] = 1 / sum;
    if (x == 0 && first + y + 16 * i < T) lse[blockIdx.x * T + first + y + 16 * i] = row_max[i] + logf(sum);
  }
  store<WIDTH>(o + head_offset(T, heads, D), o_sums, inverse_sums, first, T, heads, D);
}

// delta[t] = do[t] . o[t]; one warp per row, blockIdx.x = n * heads + head.
extern "C" __global__ void __launch_bounds__(256)
    attention_delta(const float* dout, const float* o, float* delta, int T, int heads, int D) {
  const int t = blockIdx.y * 8 + threadIdx.x / 32;
  // Each lane sums every 32nd product, then the warp sums over its lanes.
  float sum = 0;
  if (t < T)
    for (int d = threadIdx.x % 32; d < D; d += 32) {
      const long long i = head_offset(T, heads, D) + (long long)(t) * heads * D + d;
      sum += dout[i] * o[i];
    }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
  if (t < T && threadIdx.x % 32 == 0) delta[blockIdx.x * T + t] = sum;
}

// dq = ds k, for a tile of queries; p = exp(s - lse), ds = p (do v^T - delta) scale.
template <int WIDTH>
__device__ __forceinline__ void attention_backward_q(const float* dout, const float* q, const float* k, const float* v,
                                                    const float* lse, const float* delta, float* dq, int T, int S,
                                                    int heads, int D, float scale, int causal) {
  constexpr int SIDE = Tile<WIDTH>::SIDE, EACH = Tile<WIDTH>::EACH, COLUMNS = Tile<WIDTH>::COLUMNS;
  DYNAMIC_SHARED(float, memory);
  float *q_tile = memory, *dout_tile = q_tile + Tile<WIDTH>::SIZE, *k_tile = dout_tile + Tile<WIDTH>::SIZE;
  float *v_tile = k_tile + Tile<WIDTH>::SIZE, *ds_tile = v_tile + Tile<WIDTH>::SIZE;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = blockIdx.y * SIDE;
  // The tile of queries, with their do, loaded once.
  load<WIDTH>(q_tile, q + head_offset(T, heads, D), first, T, heads, D);
  load<WIDTH>(dout_tile, dout + head_offset(T, heads, D), first, T, heads, D);

  // For each tile of keys: load, s = q k^T and dp = do v^T, ds, dq_sums += ds k.
  float dq_sums[EACH][COLUMNS] = {}, ones[EACH];
  for (int i = 0; i < EACH; i++) ones[i] = 1;
  for (int key = 0; key < S; key += SIDE) {
    __syncthreads();  // the previous keys and values are no longer read
    load<WIDTH>(k_tile, k + head_offset(S, heads, D), key, S, heads, D);
    load<WIDTH>(v_tile, v + head_offset(S, heads, D), key, S, heads, D);
    __syncthreads();
    float s[EACH][EACH], dp[EACH][EACH];
    dot<WIDTH>(s, q_tile, k_tile);
    dot<WIDTH>(dp, dout_tile, v_tile);
    // ds = p (dp - delta) scale, to shared memory.
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int row = min(first + y + 16 * i, T - 1);
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        const bool attended = attends(first + y + 16 * i, key + x + 16 * j, S, causal);
        // NaN if lse is, even where masked
        const float p = expf((attended ? s[i][j] * scale : MASKED) - lse[blockIdx.x * T + row]);
        const float ds = p * (dp[i][j] - delta[blockIdx.x * T + row]) * scale;
        ds_tile[(y + 16 * i) * Tile<WIDTH>::SCORES_ROW + x + 16 * j] = ds;
      }
    }
    __syncthreads();  // ds is complete
    accumulate<WIDTH>(dq_sums, ds_tile, k_tile);
  }
  store<WIDTH>(dq + head_offset(T, heads, D), dq_sums, ones, first, T, heads, D);
}

// dk = ds^T q and dv = p^T do, for a tile of keys. Scores are transposed: rows are keys, columns queries.
template <int WIDTH>
__device__ __forceinline__ void attention_backward_kv(const float* dout, const float* q, const float* k, const float* v,
                                                 const float* lse, const float* delta, float* dk, float* dv, int T,
                                                 int S, int heads, int D, float scale, int causal) {
  constexpr int SIDE = Tile<WIDTH>::SIDE, EACH = Tile<WIDTH>::EACH, COLUMNS = Tile<WIDTH>::COLUMNS;
  DYNAMIC_SHARED(float, memory);
  float *k_tile = memory, *v_tile = k_tile + Tile<WIDTH>::SIZE, *q_tile = v_tile + Tile<WIDTH>::SIZE;
  float *dout_tile = q_tile + Tile<WIDTH>::SIZE, *p_tile = dout_tile + Tile<WIDTH>::SIZE;
  float* ds_tile = p_tile + Tile<WIDTH>::SCORES;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = blockIdx.y * SIDE;
  // The tile of keys, with their values, loaded once.
  load<WIDTH>(k_tile, k + head_offset(S, heads, D), first, S, heads, D);
  load<WIDTH>(v_tile, v + head_offset(S, heads, D), first, S, heads, D);

  // For each tile of queries: load, s^T = k q^T and dp^T = v do^T, p^T and ds^T, dv_sums += p^T do, dk_sums += ds^T q.
  float dk_sums[EACH][COLUMNS] = {}, dv_sums[EACH][COLUMNS] = {}, ones[EACH];
  for (int i = 0; i < EACH; i++) ones[i] = 1;
  for (int query = 0; query < T; query += SIDE) {
    __syncthreads();  // the previous queries are no longer read
    load<WIDTH>(q_tile, q + head_offset(T, heads, D), query, T, heads, D);
    load<WIDTH>(dout_tile, dout + head_offset(T, heads, D), query, T, heads, D);
    __syncthreads();
    float s[EACH][EACH], dp[EACH][EACH];
    dot<WIDTH>(s, k_tile, q_tile);
    dot<WIDTH>(dp, v_tile, dout_tile);
    // p^T and ds^T, to shared memory.
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int column = query + x + 16 * j;
      const float lse_query = lse[blockIdx.x * T + min(column, T - 1)];
      const float delta_query = delta[blockIdx.x * T + min(column, T - 1)];
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const float score = attends(column, first + y + 16 * i, S, causal) ? s[i][j] * scale : MASKED;
        const float p = column < T ? expf(score - lse_query) : 0;
        const int at = (y + 16 * i) * Tile<WIDTH>::SCORES_ROW + x + 16 * j;
        p_tile[at] = p;
        ds_tile[at] = p * (dp[i][j] - delta_query) * scale;
      }
    }
    __syncthreads();  // p and ds are complete
    accumulate<WIDTH>(dv_sums, p_tile, dout_tile);
    accumulate<WIDTH>(dk_sums, ds_tile, q_tile);
  }
  store<WIDTH>(dk + head_offset(S, heads, D), dk_sums, ones, first, S, heads, D);
  store<WIDTH>(dv + head_offset(S, heads, D), dv_sums, ones, first, S, heads, D);
}

#define FOR_WIDTH(WIDTH)                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      attention_##WIDTH(const float* q, const float* k, const float* v, float* o, float* lse, int T, int S,           \
                        int heads, int D, float scale, int causal) {                                                  \
    attention<WIDTH>(q, k, v, o, lse, T, S, heads, D, scale, causal);                                                 \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) attention_backward_q_##WIDTH(                                     \
      const float* dout, const float* q, const float* k, const float* v, const float* lse, const float* delta,        \
      float* dq, int T, int S, int heads, int D, float scale, int causal) {                                           \
    attention_backward_q<WIDTH>(dout, q, k, v, lse, delta, dq, T, S, heads, D, scale, causal);                        \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) attention_backward_kv_##WIDTH(                                    \
      const float* dout, const float* q, const float* k, const float* v, const float* lse, const float* delta,        \
      float* dk, float* dv, int T, int S, int heads, int D, float scale, int causal) {                                \
    attention_backward_kv<WIDTH>(dout, q, k, v, lse, delta, dk, dv, T, S, heads, D, scale, causal);                   \
  }

FOR_WIDTH(32)
FOR_WIDTH(64)
FOR_WIDTH(128)
