// Convolution as one product of matrices that are never stored (implicit GEMM), in NHWC.
//
// Take the matrix of patches X: a row for every output pixel, a column for every number that it sees, (tap, channel).
//
//   forward           y  = X w^T          rows are pixels, columns output channels, the sum runs over (tap, channel)
//   weight gradient   dw = dy^T X         rows are output channels, columns (tap, channel), the sum runs over pixels
//   input gradient    the forward product again, of dy, with w turned around
//
// (Weight gradients of wide 3x3 convolutions: winograd.cu.)
//
// A block computes a tile of the result, as in product.cu; strips of X are gathered from where they lie in x, and pixels
// beyond the border come as zeros.
//
// A sum over a few blocks' worth of tiles would leave most of the card idle, so sums are also cut into `splits` parts
// (blockIdx.y): then y is (splits, ...), and add_parts adds them up, always in the same order.

// Where a patch begins in x (its corner), or where a tap and channel lie within a patch. What the two add up to is the
// place of a number in x. A tap has two bits, for its row i and its column j; a patch has those of all rows and columns
// that are inside the picture.
struct Place {
  int offset;
  unsigned bits;
};

constexpr unsigned NEVER = 1u << 31;  // of a tap that is nowhere inside; a window has at most 15 rows and columns

__device__ __forceinline__ unsigned tap_bits(int i, int j) { return 1u << i | 0x10000u << j; }

// The bits of all i with 0 <= start + i < size.
__device__ __forceinline__ unsigned bits_inside(int start, int size) {
  return (1u << min(max(size - start, 0), 15)) - 1 & ~0u << min(max(-start, 0), 15);
}

__device__ __forceinline__ unsigned patch_bits(int row, int col, int H, int W) {
  return bits_inside(row, H) | bits_inside(col, W) << 16;
}

__device__ __forceinline__ bool inside(Place patch, Place tap) { return (patch.bits & tap.bits) == tap.bits; }

// y[n, p, q, :] = bias + add[n, p, q, :] + sum over i, j of w[:, i, j, :] @ x[n, stride p + i - top, stride q + j - left, :]
//
// With holes > 1, x has holes - 1 zero rows and columns between any two of its own: so it is for the input gradient of
// a convolution with stride. Pixels of y whose row and column leave the same remainders a, b see the same taps, every
// `holes`-th; blockIdx.z goes over these classes, and the zeros are never multiplied.
// add_by_picture: add is (N, 1, 1, O); otherwise it has y's shape.
template <template <int, int> class Product, int TM, int TN, int V>
__device__ __forceinline__ void convolve(
    const float* __restrict__ x, const float* __restrict__ w, const float* bias, const float* add, float* y, int N,
    int H, int W, int C, int P, int Q, int O, int KH, int KW, int stride, int top, int left, int holes, int add_by_picture) {
  DYNAMIC_SHARED(float, strips);
  __shared__ Place patches[TM];
  __shared__ int places[TM], places_of_add[TM];  // where the rows of the tile go in y, -1: nowhere; and in add

  const int a = blockIdx.z / holes, b = blockIdx.z % holes;  // this block's class of pixels, and its first taps
  const int i0 = ((top - a) % holes + holes) % holes, j0 = ((left - b) % holes + holes) % holes;
  const int row0 = (a - top + i0) / holes, col0 = (b - left + j0) / holes;
  const int taps_i = (KH - i0 + holes - 1) / holes, taps_j = (KW - j0 + holes - 1) / holes;  // 0 if i0 >= KH
  const int rows = (P - a + holes - 1) / holes, cols = (Q - b + holes - 1) / holes;
  const int m0 = blockIdx.x / ((O + TN - 1) / TN) * TM, n0 = blockIdx.x % ((O + TN - 1) / TN) * TN;
  if (m0 >= N * rows * cols) return;

  for (int r = threadIdx.x; r < TM; r += THREADS) {
    const int m = m0 + r, n = m / (rows * cols), p = m / cols % rows, q = m % cols;
    const int row = p * stride + row0, col = q * stride + col0;
    const bool there = n < N;
    patches[r] = {((n * H + row) * W + col) * C, there ? patch_bits(row, col, H, W) : 0};
    places[r] = there ? ((n * P + p * holes + a) * Q + q * holes + b) * O : -1;
    places_of_add[r] = add_by_picture ? n * O : places[r];
  }
  __syncthreads();

  // Where channels lie in rows of whole chunks, all taps of 16 channels come before the next 16: patches of neighbours
  // overlap, and what they share is then still in the multiprocessor's own cache. Otherwise all channels of a tap come
  // before the next tap, without a gap.
  constexpr int STRIPS = Product<TM, TN>::STRIPS;
  const int taps = taps_i * taps_j, steps = V == 4 ? taps * ((C + DEPTH - 1) / DEPTH) : (taps * C + DEPTH - 1) / DEPTH;
  const int stages = (steps + STRIPS - 1) / STRIPS, part = (stages + gridDim.y - 1) / gridDim.y;
  const int begin = min(stages, int(blockIdx.y) * part), end = min(stages, begin + part);
  const Share<V> share;
  int c = begin * STRIPS * DEPTH + share.depth, tap = 0, i = 0, j = 0;
  if (taps > 0) {
    if (V == 4)
      tap = begin * STRIPS % taps, c = begin * STRIPS / taps * DEPTH + share.depth;
    else
      tap = c / C, c %= C;
    i = tap / taps_j, j = tap % taps_j;
  }

  const int w0 = (n0 * KH * KW + i0 * KW + j0) * C, outputs = O - n0;
  float sums[TM * TN / THREADS] = {};
  sum_up<Product, TM, TN>(sums, strips, end - begin, [&](float* pixels, float* weights) {
    const bool any = i < taps_i && c < C;
    const Place tap = {(i * W + j) * C + c, any ? tap_bits(i, j) : NEVER};
    const int w_tap = w0 + holes * (i * KW + j) * C + c;
#pragma unroll UNROLLED
    for (int k = 0; k < TM / share.step; k++) {
      const int r = share.first + k * share.step;
      const Place patch = patches[r];
      const bool there = inside(patch, tap);
      share.copy(pixels, r, x + (there ? patch.offset + tap.offset : 0), there);
    }
#pragma unroll UNROLLED
    for (int k = 0; k < TN / share.step; k++) {
      const int r = share.first + k * share.step;
      const bool there = any && r < outputs;
      share.copy(weights, r, w + (there ? w_tap + r * KH * KW * C : 0), there);
    }
    if (V == 4) {
      if (++j == taps_j) j = 0, i++;
      if (i == taps_i) i = 0, c += DEPTH;
    } else {
      for (c += DEPTH; c >= C; c -= C)
        if (++j == taps_j) j = 0, i++;
    }
  });

  y += (long long)(blockIdx.y) * N * P * Q * O;
#pragma unroll
  for (int e = 0; e < TM * TN / THREADS; e++) {
    const int place = places[Product<TM, TN>::row(e)], o = n0 + Product<TM, TN>::col(e);
    if (place < 0 || o >= O) continue;
    float sum = sums[e];
    if (bias) sum += bias[o];
    if (add) sum += add[places_of_add[Product<TM, TN>::row(e)] + o];
    y[place + o] = sum;
  }
}

// dw[o, i, j, c] = sum over n, p, q of dy[n, p, q, o] x[n, stride p + i - top, stride q + j - left, c]
template <template <int, int> class Product, int TM, int TN>
__device__ __forceinline__ void correlate(const float* __restrict__ dy, const float* __restrict__ x, float* dw, int N,
                                          int H, int W, int C, int P, int Q, int O, int KH, int KW, int stride, int top,
                                          int left) {
  DYNAMIC_SHARED(float, strips);
  __shared__ Place taps[TN];
  const int columns = KH * KW * C, blocks = (columns + TN - 1) / TN;
  const int m0 = blockIdx.x / blocks * TM, n0 = blockIdx.x % blocks * TN;

  for (int r = threadIdx.x; r < TN; r += THREADS) {
    const int c = (n0 + r) % C, i = (n0 + r) / C / KW, j = (n0 + r) / C % KW;
    const bool there = n0 + r < columns;
    taps[r] = {(i * W + j) * C + c, there ? tap_bits(i, j) : NEVER};
  }
  __syncthreads();

  constexpr int LENGTH = DEPTH * Product<TM, TN>::STRIPS;
  const int pixels = N * P * Q, stages = (pixels + LENGTH - 1) / LENGTH, part = (stages + gridDim.y - 1) / gridDim.y;
  const int begin = min(stages, int(blockIdx.y) * part), end = min(stages, begin + part);
  const Share<1> share;
  int pixel = begin * LENGTH + share.depth, n = pixel / (P * Q), p = pixel / Q % P, q = pixel % Q;

  float sums[TM * TN / THREADS] = {};
  sum_up<Product, TM, TN>(sums, strips, end - begin, [&](float* gradients, float* patches) {
    const int row = p * stride - top, col = q * stride - left;
    const Place patch = {((n * H + row) * W + col) * C, pixel < pixels ? patch_bits(row, col, H, W) : 0};
#pragma unroll UNROLLED
    for (int k = 0; k < TM / share.step; k++) {
      const int r = share.first + k * share.step;
      const bool there = pixel < pixels && m0 + r < O;
      share.copy(gradients, r, dy + (there ? pixel * O + m0 + r : 0), there);
    }
#pragma unroll UNROLLED
    for (int k = 0; k < TN / share.step; k++) {
      const int r = share.first + k * share.step;
      const Place tap = taps[r];
      const bool there = inside(patch, tap);
      share.copy(patches, r, x + (there ? patch.offset + tap.offset : 0), there);
    }
    pixel += DEPTH;
    for (q += DEPTH; q >= Q; q -= Q)
      if (++p == P) p = 0, n++;
  });

  dw += (long long)(blockIdx.y) * O * columns;
#pragma unroll
  for (int e = 0; e < TM * TN / THREADS; e++) {
    const int o = m0 + Product<TM, TN>::row(e), column = n0 + Product<TM, TN>::col(e);
    if (o < O && column < columns) dw[o * columns + column] = sums[e];
  }
}

// Registers for two blocks with the large tile, or four with a small one, on a multiprocessor.
#define CONVOLVE(name, Product, TM, TN, V)                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS, V == 4 ? Product<TM, TN>::BLOCKS : 3) name(                                \
      const float* x, const float* w, const float* bias, const float* add, float* y, int N, int H, int W, int C,    \
      int P, int Q, int O, int KH, int KW, int stride, int top, int left, int holes, int add_by_picture) {                 \
    convolve<Product, TM, TN, V>(x, w, bias, add, y, N, H, W, C, P, Q, O, KH, KW, stride, top, left, holes, add_by_picture); \
  }

CONVOLVE(convolve_128x128, Float32, 128, 128, 4)
CONVOLVE(convolve_128x64, Float32, 128, 64, 4)
CONVOLVE(convolve_128x64_single, Float32, 128, 64, 1)
CONVOLVE(convolve_128x128_tf32, TensorCore, 128, 128, 4)
CONVOLVE(convolve_128x64_tf32, TensorCore, 128, 64, 4)
CONVOLVE(convolve_128x64_single_tf32, TensorCore, 128, 64, 1)

#define CORRELATE(name, Product, TM, TN)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, Product<TM, TN>::BLOCKS) name(                       \
      const float* dy, const float* x, float* dw, int N, int H, int W, int C, int P, int Q, int O, int KH, \
      int KW, int stride, int top, int left) {                                                             \
    correlate<Product, TM, TN>(dy, x, dw, N, H, W, C, P, Q, O, KH, KW, stride, top, left);                 \
  }

CORRELATE(correlate_128x128, Float32, 128, 128)
CORRELATE(correlate_64x128, Float32, 64, 128)
CORRELATE(correlate_128x128_tf32, TensorCore, 128, 128)
CORRELATE(correlate_64x128_tf32, TensorCore, 64, 128)

// y = the sum of the parts (splits, size), plus bias and add as in convolve.
extern "C" __global__ void __launch_bounds__(256) add_parts(const float* parts, const float* bias, const float* add,
                                                            float* y, int size, int O, int splits, int picture) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
  for (int s = 0; s < splits; s++) sum += parts[(long long)(s) * size + i];
  if (bias) sum += bias[i % O];
  if (add) sum += add[picture ? i / picture * O + i % O : i];
  y[i] = sum;
}

// w (O, KH, KW, C) turned around: turned[c, i, j, o] = w[o, KH - 1 - i, KW - 1 - j, c].
extern "C" __global__ void __launch_bounds__(256) turn(const float* w, float* turned, int O, int taps, int C) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= O * taps * C) return;
  const int o = i % O, tap = i / O % taps, c = i / O / taps;
  turned[i] = w[(o * taps + taps - 1 - tap) * C + c];
}
