// The weight gradient of a 3x3 convolution with stride 1 by Winograd's F(4x4, 3x3): input transforms, 36 matrix
// products, weight transform. Symbols as in reference/winograd.py; winograd_transforms.cu is prepended.
//
// dy is cut into output tiles of 4 x 4; each depends on an input tile d, 6 x 6 of x. With * elementwise,
//
//   V = B^T d B        dM = A dy A^T        dU = sum over tiles of dM * V        dw = G^T dU G
//
// In the transformed domain the 36 positions are independent: at each, the sum over tiles is a matrix product,
// (tiles, O)^T (tiles, C). The factors are stored as (36, quads, channels, 4), a quad being four consecutive tiles:
// four terms of a sum are contiguous, and one 16-byte copy takes them.

// The tile and channel of thread `here`, for tiles from `first` on: image n, row and col of the tile's first output
// pixel. Four consecutive threads have the four tiles of a quad, in the order of the transformed arrays.
struct Tile {
  int n, row, col, channel;

  __device__ Tile(int here, int channels, int down, int across, int first) {
    const int tile = first + here / 4 / channels * 4 + here % 4;
    n = tile / (down * across), row = tile / across % down * 4, col = tile % across * 4, channel = here / 4 % channels;
  }
};

// V (36, quads, C, 4) = B^T d B of each tile; one thread per tile and channel.
extern "C" __global__ void __launch_bounds__(256)
    transform_x(const float* __restrict__ x, float* V, int N, int H, int W, int C, int down, int across, int first,
                int quads, int top, int left) {
  // This thread's tile and channel.
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
  // Store, an element to each of the 36 positions.
#pragma unroll
  for (int k = 0; k < 36; k++) V[(long long)(k) * plane + here] = d[k];
}

// dM (36, quads, O, 4) = A dy A^T of each tile; one thread per tile and channel.
extern "C" __global__ void __launch_bounds__(256)
    transform_dy(const float* __restrict__ dy, float* dM, int N, int P, int Q, int O, int down, int across, int first,
                 int quads) {
  // This thread's tile and channel.
  const int here = blockIdx.x * 256 + threadIdx.x, plane = quads * O * 4;
  if (here >= plane) return;
  const Tile tile(here, O, down, across, first);
  // Load the output tile of dy (4, 4), zero outside the image, into m, rows of 6.
  float m[36];
#pragma unroll
  for (int k = 0; k < 16; k++) {
    const int p = tile.row + k / 4, q = tile.col + k % 4;
    const bool valid = tile.n < N && p < P && q < Q;
    m[k / 4 * 6 + k % 4] = valid ? dy[((tile.n * P + p) * Q + q) * O + tile.channel] : 0;
  }
  // A dy, then (A dy) A^T.
#pragma unroll
  for (int j = 0; j < 4; j++) output_transform_backward(m + j, 6);
#pragma unroll
  for (int i = 0; i < 6; i++) output_transform_backward(m + 6 * i, 1);
  // Store, an element to each of the 36 positions.
#pragma unroll
  for (int k = 0; k < 36; k++) dM[(long long)(k) * plane + here] = m[k];
}

// parts (splits, 36, O, C): at position blockIdx.z, the sum of dM^T V over the tiles of split blockIdx.y, `steps` times
// DEPTH tiles.
template <int TM, int TN>
__device__ __forceinline__ void multiply(const float* __restrict__ dM, const float* __restrict__ V, float* parts, int O,
                                         int C, int quads, int steps) {
  DYNAMIC_SHARED(float, strips);
  // This thread block's tile of (O, C), its position among the 36, and its first quad.
  const int blocks = (C + TN - 1) / TN, m0 = blockIdx.x / blocks * TM, n0 = blockIdx.x % blocks * TN;
  const StripCopy<4> strip_copy;
  dM += (long long)(blockIdx.z) * quads * O * 4;
  V += (long long)(blockIdx.z) * quads * C * 4;
  int quad = (blockIdx.y * steps * DEPTH + strip_copy.depth) / 4;

  // Multiply. Each call starts the copies of one strip of either factor.
  float sums[TM * TN / THREADS] = {};
  accumulate_tile<Float32, TM, TN>(sums, strips, min(steps, (quads * 4 + DEPTH - 1) / DEPTH - int(blockIdx.y) * steps),
                          [&](float* a, float* b) {
#pragma unroll UNROLLED
    for (int k = 0; k < TM / strip_copy.step; k++) {
      const int r = strip_copy.first + k * strip_copy.step;
      const bool valid = quad < quads && m0 + r < O;
      strip_copy.copy(a, r, dM + (valid ? (quad * O + m0 + r) * 4 : 0), valid);
    }
#pragma unroll UNROLLED
    for (int k = 0; k < TN / strip_copy.step; k++) {
      const int r = strip_copy.first + k * strip_copy.step;
      const bool valid = quad < quads && n0 + r < C;
      strip_copy.copy(b, r, V + (valid ? (quad * C + n0 + r) * 4 : 0), valid);
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

#define MULTIPLY(name, TM, TN)                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, Float32<TM, TN>::BLOCKS) name(     \
      const float* dM, const float* V, float* parts, int O, int C, int quads, int steps) { \
    multiply<TM, TN>(dM, V, parts, O, C, quads, steps);                                    \
  }

MULTIPLY(multiply_128x128, 128, 128)
MULTIPLY(multiply_64x128, 64, 128)

// dw (O, 3, 3, C) = G^T dU G, or += if `accumulate`, of dU (36, O, C); one thread per output and input channel.
extern "C" __global__ void __launch_bounds__(64)
    transform_dw(const float* __restrict__ dU, float* dw, int O, int C, int accumulate) {
  const int here = blockIdx.x * 64 + threadIdx.x;
  if (here >= O * C) return;
  // Load the 36 positions of dU.
  float u[36];
#pragma unroll
  for (int k = 0; k < 36; k++) u[k] = dU[k * O * C + here];
  // G^T dU, then (G^T dU) G.
#pragma unroll
  for (int j = 0; j < 6; j++) weight_transform_backward(u + j, 6);
#pragma unroll
  for (int i = 0; i < 3; i++) weight_transform_backward(u + 6 * i, 1);
  // Store, row i of the result in u[6 i], u[6 i + 1], u[6 i + 2].
#pragma unroll
  for (int k = 0; k < 9; k++) {
    float* to = dw + (here / C * 9 + k) * C + here % C;
    *to = u[k / 3 * 6 + k % 3] + (accumulate ? *to : 0);
  }
}
