// Group normalisation, with SiLU behind it on request, of x (N, S, C).
//
// A block takes one picture and `width` of its channels: as many whole groups as make 16 channels or more, so that it
// reads at least 64 bytes in a row. A thread stays with one channel and walks over positions, `walkers` of them side by
// side. It sums in float32, the block in float64.

constexpr int THREADS = 512;

// Where a thread of such a block begins, and how far it steps.
struct Walk {
  int channels, walkers, channel, walker;

  __device__ explicit Walk(int width)
      : channels(min(width, THREADS)), walkers(THREADS / channels), channel(threadIdx.x % channels),
        walker(threadIdx.x / channels) {}  // walker == walkers: nothing is left for this thread
};

// What the threads of a group found, added up for each group of the block: found (2, THREADS) -> sums (2, groups).
// Whoever calls it has written its numbers for channel c of the block, by walker, if it is one.
__device__ __forceinline__ void add_by_channel(const double* found, double* sums, int width, const Walk& walk) {
  __syncthreads();
  for (int c = threadIdx.x; c < walk.channels; c += THREADS) {
    double first = 0, second = 0;
    for (int i = 0; i < walk.walkers; i++) {
      first += found[i * walk.channels + c];
      second += found[THREADS + i * walk.channels + c];
    }
    sums[c] = first, sums[walk.channels + c] = second;
  }
  __syncthreads();
}

// y = z or z sigmoid(z), z = (x - mean) rstd weight + bias; mean and rstd (N, G). Sums are taken of what x differs from
// the group's first number, since squares of numbers far from zero would cancel.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, float* y,
               float* mean, float* rstd, int S, int C, int G, int width, float eps, int silu) {
  __shared__ double found[2 * THREADS], sums[2 * THREADS];
  const Walk walk(width);
  const int group_width = C / G, blocks = C / width, n = blockIdx.x / blocks, c0 = blockIdx.x % blocks * width;
  const long long start = (long long)(n) * S * C + c0;
  double total = 0, total_of_squares = 0;
  for (int c = walk.channel; c < width; c += walk.channels) {
    const float origin = x[start + c / group_width * group_width];
    float sum = 0, squares = 0;
    if (walk.walker < walk.walkers)
#pragma unroll 4
      for (int s = walk.walker; s < S; s += walk.walkers) {
        const float off = x[start + (long long)(s) * C + c] - origin;
        sum += off;
        squares += off * off;
      }
    total += sum, total_of_squares += squares;
  }
  found[threadIdx.x] = total, found[THREADS + threadIdx.x] = total_of_squares;
  add_by_channel(found, sums, width, walk);

  __shared__ float means[THREADS], rstds[THREADS];  // of the block's groups
  const int groups = width / group_width, together = min(group_width, walk.channels);
  for (int g = threadIdx.x; g < groups; g += THREADS) {
    double first = 0, second = 0;
    for (int c = g * together; c < (g + 1) * together; c++) first += sums[c], second += sums[walk.channels + c];
    const double count = (double)(S) * group_width, shift = first / count;
    const double variance = fmax(second / count - shift * shift, 0.0);
    means[g] = x[start + g * group_width] + shift;
    rstds[g] = 1 / sqrt(isnan(first) ? first : variance + eps);
    mean[n * G + c0 / group_width + g] = means[g];
    rstd[n * G + c0 / group_width + g] = rstds[g];
  }
  __syncthreads();

  if (walk.walker == walk.walkers) return;
  for (int c = walk.channel; c < width; c += walk.channels) {
    const float centre = means[c / group_width], scale = rstds[c / group_width] * weight[c0 + c], shift = bias[c0 + c];
#pragma unroll 4
    for (int s = walk.walker; s < S; s += walk.walkers) {
      const long long i = start + (long long)(s) * C + c;
      const float z = (x[i] - centre) * scale + shift;
      y[i] = silu ? z * sigmoid(z) : z;
    }
  }
}

// The gradient of z in y = silu(z) or y = z, z = xhat weight + bias.
__device__ __forceinline__ float gradient_of_z(float dy, float xhat, float weight, float bias, int silu) {
  if (!silu) return dy;
  const float z = xhat * weight + bias, s = sigmoid(z);
  return dy * s * (1 + z * (1 - s));
}

// dx = rstd (g - <g> - xhat <g xhat>), g = dz weight, <.> the mean over a group.
// parts (N, 2, C): what picture n adds to dbias and to dweight.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm_backward(const float* __restrict__ dy, const float* __restrict__ x, const float* __restrict__ weight,
                        const float* __restrict__ bias, const float* __restrict__ mean, const float* __restrict__ rstd,
                        float* dx, float* parts, int S, int C, int G, int width, int silu) {
  __shared__ double found[2 * THREADS], sums[2 * THREADS];
  const Walk walk(width);
  const int group_width = C / G, blocks = C / width, n = blockIdx.x / blocks, c0 = blockIdx.x % blocks * width;
  const long long start = (long long)(n) * S * C + c0;
  const float* means = mean + n * G + c0 / group_width;
  const float* rstds = rstd + n * G + c0 / group_width;
  float* part = parts + (long long)(n) * 2 * C + c0;
  double total_g = 0, total_gx = 0;  // over this thread's channels, of g and of g xhat
  for (int c0_ = 0; c0_ < width; c0_ += walk.channels) {  // all threads go round together: add_by_channel wants them
    const int c = c0_ + walk.channel;
    float sum = 0, sum_x = 0;
    if (walk.walker < walk.walkers && c < width) {
      const float centre = means[c / group_width], scale = rstds[c / group_width];
#pragma unroll 4
      for (int s = walk.walker; s < S; s += walk.walkers) {
        const long long i = start + (long long)(s) * C + c;
        const float xhat = (x[i] - centre) * scale;
        const float dz = gradient_of_z(dy[i], xhat, weight[c0 + c], bias[c0 + c], silu);
        sum += dz;
        sum_x += dz * xhat;
      }
    }
    found[threadIdx.x] = sum, found[THREADS + threadIdx.x] = sum_x;
    add_by_channel(found, sums, width, walk);
    if (threadIdx.x < walk.channels && c < width) {
      part[c] = sums[threadIdx.x], part[C + c] = sums[walk.channels + threadIdx.x];
      total_g += sums[threadIdx.x] * weight[c0 + c];
      total_gx += sums[walk.channels + threadIdx.x] * weight[c0 + c];
    }
  }
  found[threadIdx.x] = total_g, found[THREADS + threadIdx.x] = total_gx;
  __syncthreads();

  __shared__ float means_g[THREADS], means_gx[THREADS];
  const int groups = width / group_width, together = min(group_width, walk.channels);
  for (int g = threadIdx.x; g < groups; g += THREADS) {
    double first = 0, second = 0;
    for (int c = g * together; c < (g + 1) * together; c++) first += found[c], second += found[THREADS + c];
    means_g[g] = first / ((double)(S) * group_width), means_gx[g] = second / ((double)(S) * group_width);
  }
  __syncthreads();

  if (walk.walker == walk.walkers) return;
  for (int c = walk.channel; c < width; c += walk.channels) {
    const float centre = means[c / group_width], scale = rstds[c / group_width];
    const float mean_g = means_g[c / group_width], mean_gx = means_gx[c / group_width];
#pragma unroll 4
    for (int s = walk.walker; s < S; s += walk.walkers) {
      const long long i = start + (long long)(s) * C + c;
      const float xhat = (x[i] - centre) * scale;
      const float dz = gradient_of_z(dy[i], xhat, weight[c0 + c], bias[c0 + c], silu);
      dx[i] = scale * (dz * weight[c0 + c] - mean_g - xhat * mean_gx);
    }
  }
}
