// The one-dimensional transforms of Winograd's F(4x4, 3x3); two of them, down and across, transform a tile. As in
// cpu/winograd_transforms.py, A2 is the square of the interpolation point a, and products are factored by the even and
// odd powers that a and -a share.
//
// Accelerates reference/winograd.py: its matrices, unrolled to sums without multiplications by 0 and 1.

constexpr float A1 = 5.0f / 8, A2 = A1 * A1, B1 = 3.0f / 2, B2 = B1 * B1;  // powers of the points a and b
constexpr float P0 = A2 * B2, P2 = A2 + B2;  // (t^2 - a^2) (t^2 - b^2) = t^4 - P2 t^2 + P0
constexpr float G0 = 1 / P0, GA = 1 / (2 * A2 * (A2 - B2)), GB = 1 / (2 * B2 * (B2 - A2));  // the factors of G's rows

// B^T v of the six elements v[0], v[step], ..., in place.
__device__ __forceinline__ void input_transform(float* v, int step) {
  const float d0 = v[0], d1 = v[step], d2 = v[2 * step], d3 = v[3 * step], d4 = v[4 * step], d5 = v[5 * step];
  const float even_a = d4 - B2 * d2, odd_a = d3 - B2 * d1, even_b = d4 - A2 * d2, odd_b = d3 - A2 * d1;
  v[0] = P0 * d0 - P2 * d2 + d4;
  v[step] = even_a + A1 * odd_a;
  v[2 * step] = even_a - A1 * odd_a;
  v[3 * step] = even_b + B1 * odd_b;
  v[4 * step] = even_b - B1 * odd_b;
  v[5 * step] = P0 * d1 - P2 * d3 + d5;
}

// A v: six elements from four, in place.
__device__ __forceinline__ void output_transform_backward(float* v, int step) {
  const float y0 = v[0], y1 = v[step], y2 = v[2 * step], y3 = v[3 * step];
  const float even_a = y0 + A2 * y2, odd_a = y1 + A2 * y3, even_b = y0 + B2 * y2, odd_b = y1 + B2 * y3;
  v[step] = even_a + A1 * odd_a;
  v[2 * step] = even_a - A1 * odd_a;
  v[3 * step] = even_b + B1 * odd_b;
  v[4 * step] = even_b - B1 * odd_b;
  v[5 * step] = y3;
}

// G^T v: three elements from six, in place.
__device__ __forceinline__ void weight_transform_backward(float* v, int step) {
  const float u0 = v[0], u1 = v[step], u2 = v[2 * step], u3 = v[3 * step], u4 = v[4 * step], u5 = v[5 * step];
  v[0] = G0 * u0 + GA * (u1 + u2) + GB * (u3 + u4);
  v[step] = GA * A1 * (u1 - u2) + GB * B1 * (u3 - u4);
  v[2 * step] = GA * A2 * (u1 + u2) + GB * B2 * (u3 + u4) + u5;
}
