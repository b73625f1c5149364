// Elementwise activations and addition, sums that undo broadcasting, and embedding lookup. One thread per element of
// the result, unless stated otherwise.

extern "C" __global__ void __launch_bounds__(256) silu(const float* __restrict__ x, float* y, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) y[i] = x[i] * sigmoid(x[i]);
}

extern "C" __global__ void __launch_bounds__(256)
    silu_backward(const float* __restrict__ dy, const float* __restrict__ x, float* dx, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const float s = sigmoid(x[i]);
  dx[i] = dy[i] * s * (1 + x[i] * (1 - s));
}

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * erfcf(-x * 0.70710678f); }

extern "C" __global__ void __launch_bounds__(256) gelu(const float* __restrict__ x, float* y, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) y[i] = x[i] * normal_cdf(x[i]);
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_backward(const float* __restrict__ dy, const float* __restrict__ x, float* dx, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) dx[i] = dy[i] * (normal_cdf(x[i]) + x[i] * expf(-0.5f * x[i] * x[i]) * 0.39894228f);
}

// A row of x (rows, 2 C) is C values h, then C gates; `h` is the index of the value.
extern "C" __global__ void __launch_bounds__(256) geglu(const float* __restrict__ x, float* y, int size, int C) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const long long h = (long long)(i / C) * 2 * C + i % C;
  y[i] = x[h] * x[h + C] * normal_cdf(x[h + C]);
}

// y, unless null, is the output once more; it may be dy.
extern "C" __global__ void __launch_bounds__(256)
    geglu_backward(const float* dy, const float* __restrict__ x, float* dx, float* y, int size, int C) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const long long h = (long long)(i / C) * 2 * C + i % C;
  const float gate = x[h + C], cdf = normal_cdf(gate), gradient = dy[i];
  dx[h] = gradient * gate * cdf;
  dx[h + C] = gradient * x[h] * (cdf + gate * expf(-0.5f * gate * gate) * 0.39894228f);
  if (y) y[i] = x[h] * gate * cdf;
}

extern "C" __global__ void __launch_bounds__(256)
    add(const float* __restrict__ a, const float* __restrict__ b, float* y, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) y[i] = a[i] + b[i];
}

// a (A, R, B, Q, C) summed over R and Q. blockIdx.y is a chunk of the R Q terms, and parts (chunks, A B C) are the sums
// of chunks. A thread block is 32 consecutive results by 8 rows of terms; a thread sums runs of 16 terms in float32,
// and these sums in float64.
extern "C" __global__ void __launch_bounds__(256)
    sum_chunks(const float* __restrict__ a, double* parts, int A, int R, int B, int Q, int C, int chunk) {
  __shared__ double rows[8][32];
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32, result = blockIdx.x * 32 + lane, results = A * B * C;
  const int begin = blockIdx.y * chunk, end = min(R * Q, begin + chunk);
  // This thread's terms: every eighth of the chunk.
  double total = 0;
  if (result < results) {
    const int first = result / C / B, second = result / C % B, third = result % C;
    for (int term = begin + row; term < end; term += 8 * 16) {
      float sum = 0;
#pragma unroll 4
      for (int t = term; t < min(end, term + 8 * 16); t += 8)
        sum += a[(((long long)(first) * R + t / Q) * B + second) * Q * C + (t % Q) * C + third];
      total += sum;
    }
  }
  // The sum over the 8 rows, in a fixed order.
  rows[row][lane] = total;
  __syncthreads();
  if (row > 0 || result >= results) return;
  for (int i = 1; i < 8; i++) total += rows[i][lane];
  parts[(long long)(blockIdx.y) * results + result] = total;
}

// y = the sum of the chunks' sums, in a fixed order.
extern "C" __global__ void __launch_bounds__(256) add_chunks(const double* parts, float* y, int results, int chunks) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= results) return;
  double total = 0;
  for (int k = 0; k < chunks; k++) total += parts[(long long)(k) * results + i];
  y[i] = total;
}

// y[n] = table[index[n]]; width: elements of a row.
extern "C" __global__ void __launch_bounds__(256)
    embedding(const float* table, const int* index, float* y, int size, int width) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) y[i] = table[(long long)(index[i / width]) * width + i % width];
}

// dtable[r] = the sum of the rows of dy (n, width) with index r, in their order; each thread scans all of index.
extern "C" __global__ void __launch_bounds__(256)
    embedding_backward(const float* dy, const int* index, float* dtable, int n, int size, int width) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  double total = 0;
  for (int k = 0; k < n; k++)
    if (index[k] == i / width) total += dy[(long long)(k) * width + i % width];
  dtable[i] = total;
}
