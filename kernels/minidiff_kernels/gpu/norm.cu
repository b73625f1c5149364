// Group normalisation of x (N, S, C), optionally followed by SiLU; symbols as in reference/norm.py.
//
// A thread block takes one image and `width` of its channels: whole groups, 16 channels or more where possible, so that
// reads are at least 64 bytes contiguous. A thread keeps to one channel (every `channels`-th, if width > THREADS) and
// loops over positions with a stride. Threads sum in float32, the thread block in float64.

constexpr int THREADS = 512;

// A thread's channel, and its positions first, first + stride, ...; `channels` are side by side in the thread block.
struct ThreadSlice {
  int channels, stride, channel, first;

  __device__ explicit ThreadSlice(int width)
      : channels(min(width, THREADS)), stride(THREADS / channels), channel(threadIdx.x % channels),
        first(threadIdx.x / channels) {}  // first == stride: the thread has no positions
};

// Sums over the threads of each channel: partials (2, THREADS), two values per thread -> sums (2, channels). All
// threads of the thread block call it after writing their values.
__device__ __forceinline__ void sum_by_channel(const double* partials, double* sums, int width,
                                               const ThreadSlice& slice) {
  __syncthreads();
  for (int c = threadIdx.x; c < slice.channels; c += THREADS) {
    double first = 0, second = 0;
    for (int i = 0; i < slice.stride; i++) {
      first += partials[i * slice.channels + c];
      second += partials[THREADS + i * slice.channels + c];
    }
    sums[c] = first, sums[slice.channels + c] = second;
  }
  __syncthreads();
}

// y, unless null, = z or z sigmoid(z), z = (x - mean) rstd weight + bias; mean and rstd (N, G). The sums are of x minus
// the group's first element, since E[x^2] - E[x]^2 cancels when the mean is far from zero.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, float* y,
               float* mean, float* rstd, int S, int C, int G, int width, float eps, int silu) {
  __shared__ double partials[2 * THREADS], sums[2 * THREADS];
  const ThreadSlice slice(width);
  const int group_width = C / G, blocks = C / width, n = blockIdx.x / blocks, c0 = blockIdx.x % blocks * width;
  const long long start = (long long)(n) * S * C + c0;
  // Sums of x - origin and its square, over the thread's positions, then by channel.
  double total = 0, total_of_squares = 0;
  for (int c = slice.channel; c < width; c += slice.channels) {
    const float origin = x[start + c / group_width * group_width];
    float sum = 0, squares = 0;
    if (slice.first < slice.stride)
#pragma unroll 4
      for (int s = slice.first; s < S; s += slice.stride) {
        const float off = x[start + (long long)(s) * C + c] - origin;
        sum += off;
        squares += off * off;
      }
    total += sum, total_of_squares += squares;
  }
  partials[threadIdx.x] = total, partials[THREADS + threadIdx.x] = total_of_squares;
  sum_by_channel(partials, sums, width, slice);

  // mean and rstd of each group, from its channels' sums. A NaN in x must reach rstd: fmax would drop it.
  __shared__ float means[THREADS], rstds[THREADS];  // of this thread block's groups
  const int groups = width / group_width, together = min(group_width, slice.channels);
  for (int g = threadIdx.x; g < groups; g += THREADS) {
    double sum = 0, squares = 0;
    for (int c = g * together; c < (g + 1) * together; c++) sum += sums[c], squares += sums[slice.channels + c];
    const double count = (double)(S) * group_width, mean_off = sum / count;
    const double var = fmax(squares / count - mean_off * mean_off, 0.0);
    means[g] = x[start + g * group_width] + mean_off;
    rstds[g] = 1 / sqrt(isnan(sum) ? sum : var + eps);
    mean[n * G + c0 / group_width + g] = means[g];
    rstd[n * G + c0 / group_width + g] = rstds[g];
  }
  __syncthreads();

  // Normalise: y = z or z sigmoid(z).
  if (!y || slice.first == slice.stride) return;
  for (int c = slice.channel; c < width; c += slice.channels) {
    const float group_mean = means[c / group_width], scale = rstds[c / group_width] * weight[c0 + c];
    const float shift = bias[c0 + c];
#pragma unroll 4
    for (int s = slice.first; s < S; s += slice.stride) {
      const long long i = start + (long long)(s) * C + c;
      const float z = (x[i] - group_mean) * scale + shift;
      y[i] = silu ? z * sigmoid(z) : z;
    }
  }
}

// y = z or z sigmoid(z), z = (x - mean) rstd weight + bias, from mean and rstd (N, G); a thread computes one of `size`
// elements, an image has `image`.
extern "C" __global__ void __launch_bounds__(THREADS)
    normalise(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
              const float* __restrict__ mean, const float* __restrict__ rstd, float* y, int size, int image, int C,
              int G, int silu) {
  const long long i = (long long)(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= size) return;
  const int c = i % C, g = i / image * G + c / (C / G);
  const float z = (x[i] - mean[g]) * (rstd[g] * weight[c]) + bias[c];
  y[i] = silu ? z * sigmoid(z) : z;
}

// The gradient of z in y = silu(z) or y = z, z = xhat weight + bias.
__device__ __forceinline__ float gradient_of_z(float dy, float xhat, float weight, float bias, int silu) {
  if (!silu) return dy;
  const float z = xhat * weight + bias, s = sigmoid(z);
  return dy * s * (1 + z * (1 - s));
}

// dx = rstd (g - <g> - xhat <g xhat>), g = dz weight, <.> the mean over a group.
// parts (N, 2, C): dbias and dweight of image n alone. y, unless null, is the output once more; it may be dy. dx includes add,
// unless that is null.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm_backward(const float* dy, const float* __restrict__ x, const float* __restrict__ weight,
                        const float* __restrict__ bias, const float* __restrict__ mean, const float* __restrict__ rstd,
                        float* dx, float* parts, float* y, const float* __restrict__ add, int S, int C, int G,
                        int width, int silu) {
  __shared__ double partials[2 * THREADS], sums[2 * THREADS];
  const ThreadSlice slice(width);
  const int group_width = C / G, blocks = C / width, n = blockIdx.x / blocks, c0 = blockIdx.x % blocks * width;
  const long long start = (long long)(n) * S * C + c0;
  const float* means = mean + n * G + c0 / group_width;
  const float* rstds = rstd + n * G + c0 / group_width;
  float* part = parts + (long long)(n) * 2 * C + c0;
  // Sums of dz and dz xhat by channel: parts, and the thread's sums of g and g xhat over its channels. All threads loop
  // equally, since sum_by_channel has barriers.
  double total_g = 0, total_gx = 0;
  for (int from = 0; from < width; from += slice.channels) {
    const int c = from + slice.channel;
    float sum_dz = 0, sum_dzx = 0;
    if (slice.first < slice.stride && c < width) {
      const float group_mean = means[c / group_width], group_rstd = rstds[c / group_width];
#pragma unroll 4
      for (int s = slice.first; s < S; s += slice.stride) {
        const long long i = start + (long long)(s) * C + c;
        const float xhat = (x[i] - group_mean) * group_rstd;
        const float dz = gradient_of_z(dy[i], xhat, weight[c0 + c], bias[c0 + c], silu);
        sum_dz += dz;
        sum_dzx += dz * xhat;
      }
    }
    partials[threadIdx.x] = sum_dz, partials[THREADS + threadIdx.x] = sum_dzx;
    sum_by_channel(partials, sums, width, slice);
    if (threadIdx.x < slice.channels && c < width) {
      part[c] = sums[threadIdx.x], part[C + c] = sums[slice.channels + threadIdx.x];
      total_g += sums[threadIdx.x] * weight[c0 + c];
      total_gx += sums[slice.channels + threadIdx.x] * weight[c0 + c];
    }
  }
  partials[threadIdx.x] = total_g, partials[THREADS + threadIdx.x] = total_gx;
  __syncthreads();

  // <g> and <g xhat> of each group.
  __shared__ float means_g[THREADS], means_gx[THREADS];
  const int groups = width / group_width, together = min(group_width, slice.channels);
  for (int g = threadIdx.x; g < groups; g += THREADS) {
    double sum_g = 0, sum_gx = 0;
    for (int c = g * together; c < (g + 1) * together; c++) sum_g += partials[c], sum_gx += partials[THREADS + c];
    means_g[g] = sum_g / ((double)(S) * group_width), means_gx[g] = sum_gx / ((double)(S) * group_width);
  }
  __syncthreads();

  // dx, from dz computed again.
  if (slice.first == slice.stride) return;
  for (int c = slice.channel; c < width; c += slice.channels) {
    const float group_mean = means[c / group_width], group_rstd = rstds[c / group_width];
    const float mean_g = means_g[c / group_width], mean_gx = means_gx[c / group_width];
#pragma unroll 4
    for (int s = slice.first; s < S; s += slice.stride) {
      const long long i = start + (long long)(s) * C + c;
      const float xhat = (x[i] - group_mean) * group_rstd;
      const float dz = gradient_of_z(dy[i], xhat, weight[c0 + c], bias[c0 + c], silu);
      dx[i] = group_rstd * (dz * weight[c0 + c] - mean_g - xhat * mean_gx) + (add ? add[i] : 0);
      if (y) {
        const float z = xhat * weight[c0 + c] + bias[c0 + c];
        y[i] = silu ? z * sigmoid(z) : z;
      }
    }
  }
}
