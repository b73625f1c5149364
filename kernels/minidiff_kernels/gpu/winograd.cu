// The weight gradient of a convolution 3x3 with stride 1 after Winograd, F(4x4, 3x3): transforms, and products between.
//
// dy is cut into tiles of 4 x 4, each of which sees 6 x 6 of x. With the tile's errors e and what it sees, d,
//
//   dw = G^T [ sum over tiles of (A e A^T) * (B^T d B) ] G
//
// In the transformed domain there are 36 separate positions, and at each the sum is a product of two matrices,
// (tiles, O)^T (tiles, C). They are stored as (tiles / 4, channels, 4), so that four terms of a sum lie side by side, and
// one copy takes them.
//
// The matrices are those of polynomial interpolation at the points 0, a, -a, b, -b and infinity. The usual choice is
// a, b = 1, 2; with 5/8 and 3/2 they are smaller and the rounding error is halved.

constexpr float A = 5.0f / 8, A2 = A * A, B = 3.0f / 2, B2 = B * B;
constexpr float P0 = A2 * B2, P2 = A2 + B2;
constexpr float G0 = 1 / P0, GA = 1 / (2 * A2 * (A2 - B2)), GB = 1 / (2 * B2 * (B2 - A2));

// B^T v of six numbers, in place; they lie `step` apart.
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

// A v: of four numbers, six.
__device__ __forceinline__ void output_gradient(float* v, int step) {
  const float y0 = v[0], y1 = v[step], y2 = v[2 * step], y3 = v[3 * step];
  const float even_a = y0 + A2 * y2, odd_a = y1 + A2 * y3, even_b = y0 + B2 * y2, odd_b = y1 + B2 * y3;
  v[step] = even_a + A * odd_a;
  v[2 * step] = even_a - A * odd_a;
  v[3 * step] = even_b + B * odd_b;
  v[4 * step] = even_b - B * odd_b;
  v[5 * step] = y3;
}

// G^T v: of six numbers, three.
__device__ __forceinline__ void kernel_gradient(float* v, int step) {
  const float u0 = v[0], u1 = v[step], u2 = v[2 * step], u3 = v[3 * step], u4 = v[4 * step], u5 = v[5 * step];
  v[0] = G0 * u0 + GA * (u1 + u2) + GB * (u3 + u4);
  v[step] = GA * A * (u1 - u2) + GB * B * (u3 - u4);
  v[2 * step] = GA * A2 * (u1 + u2) + GB * B2 * (u3 + u4) + u5;
}

// Which tile and channel thread `here` has, of tiles first, first + 1, ...; row and col are the tile's first pixel. Four
// threads in a row have four tiles of one channel, since that is how they are stored.
struct Tile {
  int n, row, col, channel;

  __device__ Tile(int here, int channels, int down, int across, int first) {
    const int tile = first + here / 4 / channels * 4 + here % 4;
    n = tile / (down * across), row = tile / across % down * 4, col = tile % across * 4, channel = here / 4 % channels;
  }
};

// seen (36, quads, C, 4) = B^T d B.
extern "C" __global__ void __launch_bounds__(256)
    see(const float* __restrict__ x, float* seen, int N, int H, int W, int C, int down, int across, int first, int quads,
        int top, int left) {
  const int here = blockIdx.x * 256 + threadIdx.x, plane = quads * C * 4;
  if (here >= plane) return;
  const Tile tile(here, C, down, across, first);
  float d[36];
#pragma unroll
  for (int k = 0; k < 36; k++) {
    const int h = tile.row - top + k / 6, w = tile.col - left + k % 6;
    const bool there = tile.n < N && h >= 0 && h < H && w >= 0 && w < W;
    d[k] = there ? x[((tile.n * H + h) * W + w) * C + tile.channel] : 0;
  }
#pragma unroll
  for (int j = 0; j < 6; j++) input_transform(d + j, 6);
#pragma unroll
  for (int i = 0; i < 6; i++) input_transform(d + 6 * i, 1);
#pragma unroll
  for (int k = 0; k < 36; k++) seen[(long long)(k) * plane + here] = d[k];
}

// errors (36, quads, O, 4) = A e A^T.
extern "C" __global__ void __launch_bounds__(256)
    see_errors(const float* __restrict__ dy, float* errors, int N, int P, int Q, int O, int down, int across, int first,
               int quads) {
  const int here = blockIdx.x * 256 + threadIdx.x, plane = quads * O * 4;
  if (here >= plane) return;
  const Tile tile(here, O, down, across, first);
  float e[36];
#pragma unroll
  for (int k = 0; k < 16; k++) {
    const int p = tile.row + k / 4, q = tile.col + k % 4;
    const bool there = tile.n < N && p < P && q < Q;
    e[k / 4 * 6 + k % 4] = there ? dy[((tile.n * P + p) * Q + q) * O + tile.channel] : 0;
  }
#pragma unroll
  for (int j = 0; j < 4; j++) output_gradient(e + j, 6);
#pragma unroll
  for (int i = 0; i < 6; i++) output_gradient(e + 6 * i, 1);
#pragma unroll
  for (int k = 0; k < 36; k++) errors[(long long)(k) * plane + here] = e[k];
}

// parts (splits, 36, O, C): at position blockIdx.z the sum of errors x seen over the tiles of part blockIdx.y, which are
// `steps` times DEPTH.
template <int TM, int TN>
__device__ __forceinline__ void multiply(const float* __restrict__ errors, const float* __restrict__ seen, float* parts,
                                         int O, int C, int quads, int steps) {
  DYNAMIC_SHARED(float, strips);
  const int blocks = (C + TN - 1) / TN, m0 = blockIdx.x / blocks * TM, n0 = blockIdx.x % blocks * TN;
  const Share<4> share;
  errors += (long long)(blockIdx.z) * quads * O * 4;
  seen += (long long)(blockIdx.z) * quads * C * 4;
  int quad = (blockIdx.y * steps * DEPTH + share.depth) / 4;

  float sums[TM * TN / THREADS] = {};
  sum_up<Float32, TM, TN>(sums, strips, min(steps, (quads * 4 + DEPTH - 1) / DEPTH - int(blockIdx.y) * steps),
                          [&](float* a, float* b) {
#pragma unroll UNROLLED
    for (int k = 0; k < TM / share.step; k++) {
      const int r = share.first + k * share.step;
      const bool there = quad < quads && m0 + r < O;
      share.copy(a, r, errors + (there ? (quad * O + m0 + r) * 4 : 0), there);
    }
#pragma unroll UNROLLED
    for (int k = 0; k < TN / share.step; k++) {
      const int r = share.first + k * share.step;
      const bool there = quad < quads && n0 + r < C;
      share.copy(b, r, seen + (there ? (quad * C + n0 + r) * 4 : 0), there);
    }
    quad += DEPTH / 4;
  });

  parts += ((long long)(blockIdx.y) * 36 + blockIdx.z) * O * C;
#pragma unroll
  for (int e = 0; e < TM * TN / THREADS; e++) {
    const int o = m0 + Float32<TM, TN>::row(e), c = n0 + Float32<TM, TN>::col(e);
    if (o < O && c < C) parts[o * C + c] = sums[e];
  }
}

#define MULTIPLY(name, TM, TN)                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, Float32<TM, TN>::BLOCKS) name(                               \
      const float* errors, const float* seen, float* parts, int O, int C, int quads, int steps) {                    \
    multiply<TM, TN>(errors, seen, parts, O, C, quads, steps);                                                       \
  }

MULTIPLY(multiply_128x128, 128, 128)
MULTIPLY(multiply_64x128, 64, 128)

// dw (O, 3, 3, C) = G^T u G of the sums (36, O, C), and if `more` what is in dw beside it; a thread has an output and an
// input channel.
extern "C" __global__ void __launch_bounds__(64)
    transform_gradient(const float* __restrict__ sums, float* dw, int O, int C, int more) {
  const int here = blockIdx.x * 64 + threadIdx.x;
  if (here >= O * C) return;
  float u[36];
#pragma unroll
  for (int k = 0; k < 36; k++) u[k] = sums[k * O * C + here];
#pragma unroll
  for (int j = 0; j < 6; j++) kernel_gradient(u + j, 6);
#pragma unroll
  for (int i = 0; i < 3; i++) kernel_gradient(u + 6 * i, 1);
#pragma unroll
  for (int k = 0; k < 9; k++) {
    float* to = dw + (here / C * 9 + k) * C + here % C;
    *to = u[k / 3 * 6 + k % 3] + (more ? *to : 0);
  }
}
