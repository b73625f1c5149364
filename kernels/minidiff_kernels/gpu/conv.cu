// Convolution as one product of matrices that are never stored (implicit GEMM), in NHWC.
//
// X is the im2col matrix: one row per output pixel (its patch of x), one column per (tap, channel).
//
//   forward           y  = X w^T          rows are pixels, columns output channels, the sum runs over (tap, channel)
//   weight gradient   dw = dy^T X         rows are output channels, columns (tap, channel), the sum runs over pixels
//   input gradient    the forward product of dy, with w flipped and its channels exchanged
//
// (Weight gradients of wide 3x3 convolutions: winograd.cu.)
//
// A thread block computes a tile of the result, as in product.cu; strips of X are gathered from x, and padding is zero.
//
// With few tiles most multiprocessors would be idle, so the sum is also divided into `splits` parts (split-K,
// blockIdx.y): then y is (splits, ...), and sum_splits adds them up, always in the same order.

// The offset in x of a patch (its top left pixel), or the offset of a (tap, channel) within a patch; an element of X is
// at their sum. The mask of a tap has two bits, for its row i and its column j; the mask of a patch has the bits of all
// rows and columns that are inside the image.
struct Location {
  int offset;
  unsigned mask;
};

constexpr unsigned OUTSIDE = 1u << 31;  // mask of a tap outside every patch; a kernel has at most 15 x 15 taps

__device__ __forceinline__ unsigned tap_mask(int i, int j) { return 1u << i | 0x10000u << j; }

// The bits of all i with 0 <= start + i < size.
__device__ __forceinline__ unsigned mask_inside(int start, int size) {
  return (1u << min(max(size - start, 0), 15)) - 1 & ~0u << min(max(-start, 0), 15);
}

__device__ __forceinline__ unsigned patch_mask(int row, int col, int H, int W) {
  return mask_inside(row, H) | mask_inside(col, W) << 16;
}

__device__ __forceinline__ bool inside(Location patch, Location tap) { return (patch.mask & tap.mask) == tap.mask; }

// y[n, p, q, :] = bias + add[n, p, q, :] + sum over i, j of w[:, i, j, :] @ x[n, s p + i - top, s q + j - left, :]
// s: stride
//
// dilation > 1: x has dilation - 1 zero rows and columns between its own (input dilation), as in the input gradient of
// a strided convolution. Pixels of y with the same residues a, b of row and column use the same taps, every
// dilation-th; blockIdx.z goes over these classes, so that the zeros are never multiplied.
// add_per_image: add is (N, 1, 1, O); otherwise it has y's shape.
template <template <int, int> class Product, int TM, int TN, int V>
__device__ __forceinline__ void convolve(
    const float* __restrict__ x, const float* __restrict__ w, const float* bias, const float* add, float* y, int N,
    int H, int W, int C, int P, int Q, int O, int KH, int KW, int stride, int top, int left, int dilation,
    int add_per_image) {
  DYNAMIC_SHARED(float, strips);
  __shared__ Location patches[TM];
  __shared__ int y_offsets[TM], add_offsets[TM];  // offsets of the tile's rows in y (-1: none) and in add

  // This thread block's class of pixels (a, b), its first taps (i0, j0), and its tile (m0, n0).
  const int a = blockIdx.z / dilation, b = blockIdx.z % dilation;
  const int i0 = ((top - a) % dilation + dilation) % dilation, j0 = ((left - b) % dilation + dilation) % dilation;
  const int row0 = (a - top + i0) / dilation, col0 = (b - left + j0) / dilation;
  const int taps_i = (KH - i0 + dilation - 1) / dilation;  // 0 if i0 >= KH
  const int taps_j = (KW - j0 + dilation - 1) / dilation;
  const int rows = (P - a + dilation - 1) / dilation, cols = (Q - b + dilation - 1) / dilation;
  const int m0 = blockIdx.x / ((O + TN - 1) / TN) * TM, n0 = blockIdx.x % ((O + TN - 1) / TN) * TN;
  if (m0 >= N * rows * cols) return;

  // The patches of the tile's rows.
  for (int r = threadIdx.x; r < TM; r += THREADS) {
    const int m = m0 + r, n = m / (rows * cols), p = m / cols % rows, q = m % cols;
    const int row = p * stride + row0, col = q * stride + col0;
    const bool valid = n < N;
    patches[r] = {((n * H + row) * W + col) * C, valid ? patch_mask(row, col, H, W) : 0};
    y_offsets[r] = valid ? ((n * P + p * dilation + a) * Q + q * dilation + b) * O : -1;
    add_offsets[r] = add_per_image ? n * O : y_offsets[r];
  }
  __syncthreads();

  // This thread block's part of the sum. If C is a multiple of 4 (V = 4), all taps of 16 channels come before the next
  // 16 channels: neighbouring patches overlap, and their common pixels are still in L1. Otherwise all channels of a tap
  // come before the next tap, without gaps.
  constexpr int STRIPS = Product<TM, TN>::STRIPS;
  const int taps = taps_i * taps_j, steps = V == 4 ? taps * ((C + DEPTH - 1) / DEPTH) : (taps * C + DEPTH - 1) / DEPTH;
  const int stages = (steps + STRIPS - 1) / STRIPS, part = (stages + gridDim.y - 1) / gridDim.y;
  const int begin = min(stages, int(blockIdx.y) * part), end = min(stages, begin + part);
  const StripCopy<V> strip_copy;
  int c = begin * STRIPS * DEPTH + strip_copy.depth, tap = 0, i = 0, j = 0;
  if (taps > 0) {
    if (V == 4)
      tap = begin * STRIPS % taps, c = begin * STRIPS / taps * DEPTH + strip_copy.depth;
    else
      tap = c / C, c %= C;
    i = tap / taps_j, j = tap % taps_j;
  }

  // Multiply. Each call starts the copies of one strip of patches and one of weights, then advances (i, j, c).
  const int w0 = (n0 * KH * KW + i0 * KW + j0) * C, outputs = O - n0;
  float sums[TM * TN / THREADS] = {};
  accumulate_tile<Product, TM, TN>(sums, strips, end - begin, [&](float* pixels, float* weights) {
    const bool any = i < taps_i && c < C;
    const Location tap = {(i * W + j) * C + c, any ? tap_mask(i, j) : OUTSIDE};
    const int w_tap = w0 + dilation * (i * KW + j) * C + c;
#pragma unroll UNROLLED
    for (int k = 0; k < TM / strip_copy.step; k++) {
      const int r = strip_copy.first + k * strip_copy.step;
      const Location patch = patches[r];
      const bool valid = inside(patch, tap);
      strip_copy.copy(pixels, r, x + (valid ? patch.offset + tap.offset : 0), valid);
    }
#pragma unroll UNROLLED
    for (int k = 0; k < TN / strip_copy.step; k++) {
      const int r = strip_copy.first + k * strip_copy.step;
      const bool valid = any && r < outputs;
      strip_copy.copy(weights, r, w + (valid ? w_tap + r * KH * KW * C : 0), valid);
    }
    if (V == 4) {
      if (++j == taps_j) j = 0, i++;
      if (i == taps_i) i = 0, c += DEPTH;
    } else {
      for (c += DEPTH; c >= C; c -= C)
        if (++j == taps_j) j = 0, i++;
    }
  });

  // Store the tile, with bias and add.
  y += (long long)(blockIdx.y) * N * P * Q * O;
#pragma unroll
  for (int e = 0; e < TM * TN / THREADS; e++) {
    const int y_offset = y_offsets[Product<TM, TN>::row(e)], o = n0 + Product<TM, TN>::col(e);
    if (y_offset < 0 || o >= O) continue;
    float sum = sums[e];
    if (bias) sum += bias[o];
    if (add) sum += add[add_offsets[Product<TM, TN>::row(e)] + o];
    y[y_offset + o] = sum;
  }
}

// dw[o, i, j, c] = sum over n, p, q of dy[n, p, q, o] x[n, stride p + i - top, stride q + j - left, c]
template <template <int, int> class Product, int TM, int TN>
__device__ __forceinline__ void weight_gradient(
    const float* __restrict__ dy, const float* __restrict__ x, float* dw, int N, int H, int W, int C, int P, int Q,
    int O, int KH, int KW, int stride, int top, int left) {
  DYNAMIC_SHARED(float, strips);
  __shared__ Location taps[TN];
  // This thread block's tile (m0, n0).
  const int columns = KH * KW * C, blocks = (columns + TN - 1) / TN;
  const int m0 = blockIdx.x / blocks * TM, n0 = blockIdx.x % blocks * TN;

  // The taps and channels of the tile's columns.
  for (int r = threadIdx.x; r < TN; r += THREADS) {
    const int c = (n0 + r) % C, i = (n0 + r) / C / KW, j = (n0 + r) / C % KW;
    const bool valid = n0 + r < columns;
    taps[r] = {(i * W + j) * C + c, valid ? tap_mask(i, j) : OUTSIDE};
  }
  __syncthreads();

  // This thread block's part of the sum over pixels; LENGTH pixels a stage.
  constexpr int LENGTH = DEPTH * Product<TM, TN>::STRIPS;
  const int pixels = N * P * Q, stages = (pixels + LENGTH - 1) / LENGTH, part = (stages + gridDim.y - 1) / gridDim.y;
  const int begin = min(stages, int(blockIdx.y) * part), end = min(stages, begin + part);
  const StripCopy<1> strip_copy;
  int pixel = begin * LENGTH + strip_copy.depth, n = pixel / (P * Q), p = pixel / Q % P, q = pixel % Q;

  // Multiply. Each call starts the copies of one strip of dy and one of patches, then advances (n, p, q).
  float sums[TM * TN / THREADS] = {};
  accumulate_tile<Product, TM, TN>(sums, strips, end - begin, [&](float* gradients, float* patches) {
    const int row = p * stride - top, col = q * stride - left;
    const Location patch = {((n * H + row) * W + col) * C, pixel < pixels ? patch_mask(row, col, H, W) : 0};
#pragma unroll UNROLLED
    for (int k = 0; k < TM / strip_copy.step; k++) {
      const int r = strip_copy.first + k * strip_copy.step;
      const bool valid = pixel < pixels && m0 + r < O;
      strip_copy.copy(gradients, r, dy + (valid ? pixel * O + m0 + r : 0), valid);
    }
#pragma unroll UNROLLED
    for (int k = 0; k < TN / strip_copy.step; k++) {
      const int r = strip_copy.first + k * strip_copy.step;
      const Location tap = taps[r];
      const bool valid = inside(patch, tap);
      strip_copy.copy(patches, r, x + (valid ? patch.offset + tap.offset : 0), valid);
    }
    pixel += DEPTH;
    for (q += DEPTH; q >= Q; q -= Q)
      if (++p == P) p = 0, n++;
  });

  // Store the tile.
  dw += (long long)(blockIdx.y) * O * columns;
#pragma unroll
  for (int e = 0; e < TM * TN / THREADS; e++) {
    const int o = m0 + Product<TM, TN>::row(e), column = n0 + Product<TM, TN>::col(e);
    if (o < O && column < columns) dw[o * columns + column] = sums[e];
  }
}

// __launch_bounds__: at least that many thread blocks on a multiprocessor, which limits the registers of a thread.
#define CONVOLVE(name, Product, TM, TN, V)                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, V == 4 ? Product<TM, TN>::BLOCKS : 3) name(              \
      const float* x, const float* w, const float* bias, const float* add, float* y, int N, int H, int W, int C, \
      int P, int Q, int O, int KH, int KW, int stride, int top, int left, int dilation, int add_per_image) {     \
    convolve<Product, TM, TN, V>(x, w, bias, add, y, N, H, W, C, P, Q, O, KH, KW, stride, top, left, dilation,   \
                                 add_per_image);                                                                 \
  }

CONVOLVE(convolve_128x128, Float32, 128, 128, 4)
CONVOLVE(convolve_128x64, Float32, 128, 64, 4)
CONVOLVE(convolve_128x64_single, Float32, 128, 64, 1)
CONVOLVE(convolve_128x128_tf32, TensorCore, 128, 128, 4)
CONVOLVE(convolve_128x64_tf32, TensorCore, 128, 64, 4)
CONVOLVE(convolve_128x64_single_tf32, TensorCore, 128, 64, 1)

#define WEIGHT_GRADIENT(name, Product, TM, TN)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, Product<TM, TN>::BLOCKS) name(                       \
      const float* dy, const float* x, float* dw, int N, int H, int W, int C, int P, int Q, int O, int KH, \
      int KW, int stride, int top, int left) {                                                             \
    weight_gradient<Product, TM, TN>(dy, x, dw, N, H, W, C, P, Q, O, KH, KW, stride, top, left);                 \
  }

WEIGHT_GRADIENT(weight_gradient_128x128, Float32, 128, 128)
WEIGHT_GRADIENT(weight_gradient_64x128, Float32, 64, 128)
WEIGHT_GRADIENT(weight_gradient_128x128_tf32, TensorCore, 128, 128)
WEIGHT_GRADIENT(weight_gradient_64x128_tf32, TensorCore, 64, 128)

// y = the sum of parts (splits, size) over the splits, plus bias and add as in convolve; image: the size of one image
// of y if add is (N, 1, 1, O), else 0.
extern "C" __global__ void __launch_bounds__(256) sum_splits(const float* parts, const float* bias, const float* add,
                                                            float* y, int size, int O, int splits, int image) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
  for (int s = 0; s < splits; s++) sum += parts[(long long)(s) * size + i];
  if (bias) sum += bias[i % O];
  if (add) sum += add[image ? i / image * O + i % O : i];
  y[i] = sum;
}

// The kernel of the input gradient: flipped[c, i, j, o] = w[o, KH - 1 - i, KW - 1 - j, c].
extern "C" __global__ void __launch_bounds__(256) flip_weights(const float* w, float* flipped, int O, int taps, int C) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= O * taps * C) return;
  const int o = i % O, tap = i / O % taps, c = i / O / taps;
  flipped[i] = w[(o * taps + taps - 1 - tap) * C + c];
}
