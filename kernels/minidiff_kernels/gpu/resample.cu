// Nearest-neighbour upsampling and concatenation along the channels. T is float4 if all channel counts are multiples of
// 4, else float; sizes and channels count elements of T. One thread per T.

// y[n, 2 h + i, 2 w + j, c] = x[n, h, w, c] for i, j < 2; row = n H + h.
template <class T>
__device__ __forceinline__ void upsample(const T* __restrict__ x, T* y, int size, int W, int C) {
  const int i = blockIdx.x * 256 + threadIdx.x;  // of y, (N H, 2, W, 2, C)
  if (i >= size) return;
  const int c = i % C, w = i / C / 2 % W, row = i / C / 2 / W / 2;
  y[i] = x[(row * W + w) * C + c];
}

// dx[n, h, w, c] = the sum of dy[n, 2 h + i, 2 w + j, c] over i, j < 2.
template <class T>
__device__ __forceinline__ void upsample_backward(const T* __restrict__ dy, T* dx, int size, int W, int C) {
  const int i = blockIdx.x * 256 + threadIdx.x;  // of dx, (N H, W, C)
  if (i >= size) return;
  const int c = i % C, w = i / C % W, row = i / C / W, upper = (row * 4 * W + w * 2) * C + c, lower = upper + 2 * W * C;
  dx[i] = (dy[upper] + dy[upper + C]) + (dy[lower] + dy[lower + C]);
}

// y (rows, A + B) = the channels of a (rows, A), then those of b (rows, B).
template <class T>
__device__ __forceinline__ void concat(const T* __restrict__ a, const T* __restrict__ b, T* y, int size, int A, int B) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const int row = i / (A + B), c = i % (A + B);
  y[i] = c < A ? a[row * A + c] : b[row * B + c - A];
}

// da (rows, A) and db (rows, B) = the first A and the other B channels of dy (rows, A + B).
template <class T>
__device__ __forceinline__ void split(const T* __restrict__ dy, T* da, T* db, int size, int A, int B) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const int row = i / (A + B), c = i % (A + B);
  (c < A ? da[row * A + c] : db[row * B + c - A]) = dy[i];
}

#define IN_BOTH_WIDTHS(name, PARAMETERS, ...)                                                             \
  extern "C" __global__ void __launch_bounds__(256) name##_float PARAMETERS(float) { name(__VA_ARGS__); } \
  extern "C" __global__ void __launch_bounds__(256) name##_float4 PARAMETERS(float4) { name(__VA_ARGS__); }

#define UPSAMPLE_PARAMETERS(T) (const T* x, T* y, int size, int W, int C)
#define CONCAT_PARAMETERS(T) (const T* a, const T* b, T* y, int size, int A, int B)
#define SPLIT_PARAMETERS(T) (const T* dy, T* da, T* db, int size, int A, int B)

IN_BOTH_WIDTHS(upsample, UPSAMPLE_PARAMETERS, x, y, size, W, C)
IN_BOTH_WIDTHS(upsample_backward, UPSAMPLE_PARAMETERS, x, y, size, W, C)
IN_BOTH_WIDTHS(concat, CONCAT_PARAMETERS, a, b, y, size, A, B)
IN_BOTH_WIDTHS(split, SPLIT_PARAMETERS, dy, da, db, size, A, B)
