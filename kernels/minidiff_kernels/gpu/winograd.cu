// The weight gradient of a 3x3 convolution with stride 1 by Winograd's F(4x4, 3x3): input transforms, 36 matrix
// products, weight transform. Symbols as in cpu/winograd.py.
//
// dy is cut into output tiles of 4 x 4; each depends on an input tile d, 6 x 6 of x. With * elementwise,
//
//   dw = G^T [ sum over tiles of (A dy A^T) * (B^T d B) ] G
//
// In the transformed domain the 36 positions are independent: at each, the sum over tiles is a matrix product,
// (tiles, O)^T (tiles, C). The factors are stored as (36, quads, channels, 4), a quad being four consecutive tiles:
// four terms of a sum are contiguous, and one 16-byte copy takes them.
//
// The matrices are those of polynomial interpolation at the points 0, a, -a, b, -b and infinity. The usual choice is
// a, b = 1, 2 (Lavin & Gray); with 5/8 and 3/2 the rounding error is about half as large.

constexpr float A = 5.0f / 8, A2 = A * A, B = 3.0f / 2, B2 = B * B;
constexpr float P0 = A2 * B2, P2 = A2 + B2;
constexpr float G0 = 1 / P0, GA = 1 / (2 * A2 * (A2 - B2)), GB = 1 / (2 * B2 * (B2 - A2));

// B^T v of the six elements v[0], v[step], ..., in place.
__device__ __forceinline__ void input_transform(float* v, int step) {
  const float d0 = v[0], d1 = v[step], d2 = v[2 * step], d3 = v[3 * step], d4 = v[4 * step], d5 = v[5 * step];
  const float even_a = d4 - B2 * d2, odd_a = d3 - B2 * d1, even_b = d4 - A2 * d2, odd_b = d3 - A2 * d1;
  v[0] = P0 * d0 - P2 * d2 + d4;
  v[step] = even_a + A * odd_a;
  v[2 * step] = even_a - A * odd_a;
  v[3 * step] = even_b + B * odd_b;
  v[4 * step] = even_b - B * odd_b;
  v[5 * step] = P0 * d1 - P2 * d3 + d5;
}

// A v: six elements from four, in place.
__device__ __forceinline__ void output_transform_backward(float* v, int step) {
  const float y0 = v[0], y1 = v[step], y2 = v[2 * step], y3 = v[3 * step];
  const float even_a = y0 + A2 * y2, odd_a = y1 + A2 * y3, even_b = y0 + B2 * y2, odd_b = y1 + B2 * y3;
  v[step] = even_a + A * odd_a;
  v[2 * step] = even_a - A * odd_a;
  v[3 * step] = even_b + B * odd_b;
  v[4 * step] = even_b - B * odd_b;
  v[5 * step] = y3;
}

// G^T v: three elements from six, in place.
__device__ __forceinline__ void weight_transform_backward(float* v, int step) {
  const float u0 = v[0], u1 = v[step], u2 = v[2 * step], u3 = v[3 * step], u4 = v[4 * step], u5 = v[5 * step];
  v[0] = G0 * u0 + GA * (u1 + u2) + GB * (u3 + u4);
  v[step] = GA * A * (u1 - u2) + GB * B * (u3 - u4);
  v[2 * step] = GA * A2 * (u1 + u2) + GB * B2 * (u3 + u4) + u5;
}

// The tile and channel of thread `here`, for tiles from `first` on: image n, row and col of the tile's first output
// pixel. Four consecutive threads have the four tiles of a quad, in the order of the transformed arrays.
struct Tile {
  int n, row, col, channel;

  __device__ Tile(int here, int channels, int down, int across, int first) {
    const int tile = first + here / 4 / channels * 4 + here % 4;
    n = tile / (down * across), row = tile / across % down * 4, col = tile % across * 4, channel = here / 4 % channels;
  }
};

// transformed_x (36, quads, C, 4) = B^T d B; one thread per tile and channel.
extern "C" __global__ void __launch_bounds__(256)
    transform_x(const float* __restrict__ x, float* transformed_x, int N, int H, int W, int C, int down, int across,
                int first, int quads, int top, int left) {
  const int here = blockIdx.x * 256 + threadIdx.x, plane = quads * C * 4;
  if (here >= plane) return;
  const Tile tile(here, C, down, across, first);
  // Load the input tile d, zero outside the image.
  float d[36];
#pragma unroll
  for (int k = 0; k < 36; k++) {
    const int h = tile.row - top + k / 6, w = tile.col - left + k % 6;
    const bool valid = tile.n < N && h >= 0 && h < H && w >= 0 && w < W;
    d[k] = valid ? x[((tile.n * H + h) * W + w) * C + tile.channel] : 0;
  }
  // B^T d, then (B^T d) B.
#pragma unroll
  for (int j = 0; j < 6; j++) input_transform(d + j, 6);
#pragma unroll
  for (int i = 0; i < 6; i++) input_transform(d + 6 * i, 1);
#pragma unroll
  for (int k = 0; k < 36; k++) transformed_x[(long long)(k) * plane + here] = d[k];
}

// transformed_dy (36, quads, O, 4) = A dy A^T; one thread per tile and channel.
extern "C" __global__ void __launch_bounds__(256)
    transform_dy(const float* __restrict__ dy, float* transformed_dy, int N, int P, int Q, int O, int down, int across,
                 int first, int quads) {
  const int here = blockIdx.x * 256 + threadIdx.x, plane = quads * O * 4;
  if (here >= plane) return;
  const Tile tile(here, O, down, across, first);
  // Load the output tile of dy (4, 4), zero outside the image, into rows of 6.
  float e[36];
#pragma unroll
  for (int k = 0; k < 16; k++) {
    const int p = tile.row + k / 4, q = tile.col + k % 4;
    const bool valid = tile.n < N && p < P && q < Q;
    e[k / 4 * 6 + k % 4] = valid ? dy[((tile.n * P + p) * Q + q) * O + tile.channel] : 0;
  }
  // A dy, then (A dy) A^T.
#pragma unroll
  for (int j = 0; j < 4; j++) output_transform_backward(e + j, 6);
#pragma unroll
  for (int i = 0; i < 6; i++) output_transform_backward(e + 6 * i, 1);
#pragma unroll
  for (int k = 0; k < 36; k++) transformed_dy[(long long)(k) * plane + here] = e[k];
}

// parts (splits, 36, O, C): at position blockIdx.z, transformed_dy^T transformed_x summed over the tiles of split
// blockIdx.y, `steps` times DEPTH tiles.
template <int TM, int TN>
__device__ __forceinline__ void multiply(const float* __restrict__ transformed_dy,
                                         const float* __restrict__ transformed_x, float* parts, int O, int C, int quads,
                                         int steps) {
  DYNAMIC_SHARED(float, strips);
  const int blocks = (C + TN - 1) / TN, m0 = blockIdx.x / blocks * TM, n0 = blockIdx.x % blocks * TN;
  const StripCopy<4> strip_copy;
  transformed_dy += (long long)(blockIdx.z) * quads * O * 4;
  transformed_x += (long long)(blockIdx.z) * quads * C * 4;
  int quad = (blockIdx.y * steps * DEPTH + strip_copy.depth) / 4;

  // Multiply. Each call starts the copies of one strip of either factor.
  float sums[TM * TN / THREADS] = {};
  accumulate_tile<Float32, TM, TN>(sums, strips, min(steps, (quads * 4 + DEPTH - 1) / DEPTH - int(blockIdx.y) * steps),
                          [&](float* a, float* b) {
#pragma unroll UNROLLED
    for (int k = 0; k < TM / strip_copy.step; k++) {
      const int r = strip_copy.first + k * strip_copy.step;
      const bool valid = quad < quads && m0 + r < O;
      strip_copy.copy(a, r, transformed_dy + (valid ? (quad * O + m0 + r) * 4 : 0), valid);
    }
#pragma unroll UNROLLED
    for (int k = 0; k < TN / strip_copy.step; k++) {
      const int r = strip_copy.first + k * strip_copy.step;
      const bool valid = quad < quads && n0 + r < C;
      strip_copy.copy(b, r, transformed_x + (valid ? (quad * C + n0 + r) * 4 : 0), valid);
    }
    quad += DEPTH / 4;
  });

  // Store the tile.
  parts += ((long long)(blockIdx.y) * 36 + blockIdx.z) * O * C;
#pragma unroll
  for (int e = 0; e < TM * TN / THREADS; e++) {
    const int o = m0 + Float32<TM, TN>::row(e), c = n0 + Float32<TM, TN>::col(e);
    if (o < O && c < C) parts[o * C + c] = sums[e];
  }
}

#define MULTIPLY(name, TM, TN)                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, Float32<TM, TN>::BLOCKS) name(                       \
      const float* transformed_dy, const float* transformed_x, float* parts, int O, int C, int quads, int steps) { \
    multiply<TM, TN>(transformed_dy, transformed_x, parts, O, C, quads, steps);                              \
  }

MULTIPLY(multiply_128x128, 128, 128)
MULTIPLY(multiply_64x128, 64, 128)

// dw (O, 3, 3, C) = G^T u G, or += if `accumulate`, where u (36, O, C) are the sums over tiles; one thread per output
// and input channel.
extern "C" __global__ void __launch_bounds__(64)
    transform_dw(const float* __restrict__ sums, float* dw, int O, int C, int accumulate) {
  const int here = blockIdx.x * 64 + threadIdx.x;
  if (here >= O * C) return;
  // Load the 36 positions, G^T u, then (G^T u) G, store.
  float u[36];
#pragma unroll
  for (int k = 0; k < 36; k++) u[k] = sums[k * O * C + here];
#pragma unroll
  for (int j = 0; j < 6; j++) weight_transform_backward(u + j, 6);
#pragma unroll
  for (int i = 0; i < 3; i++) weight_transform_backward(u + 6 * i, 1);
#pragma unroll
  for (int k = 0; k < 9; k++) {
    float* to = dw + (here / C * 9 + k) * C + here % C;
    *to = u[k / 3 * 6 + k % 3] + (accumulate ? *to : 0);
  }
}
