// AdamW over flat buffers: gradient clipping, weight decay, update and EMA in one pass; the host reads nothing back.

// parts[b] = the sum of squares of thread block b's elements of g (a grid-stride loop), in float64.
extern "C" __global__ void __launch_bounds__(256) sum_of_squares(const float* __restrict__ g, double* parts, int size) {
  double total = 0;
  for (int i = blockIdx.x * 256 + threadIdx.x; i < size; i += gridDim.x * 256) total += (double)(g[i]) * g[i];
  total = block_sum(total);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// norm = the square root of the sum of parts (count,); one thread block.
extern "C" __global__ void __launch_bounds__(256) root_of_sum(const double* parts, double* norm, int count) {
  double total = 0;
  for (int i = threadIdx.x; i < count; i += 256) total += parts[i];
  total = block_sum(total);
  if (threadIdx.x == 0) *norm = sqrt(total);
}

// Equations in reference/optim.py: keep = 1 - lr weight_decay, new_m = 1 - beta1, new_v = 1 - beta2,
// rate = lr / (1 - beta1^step), unbias_v = (1 - beta2^step)^-1/2, new_ema = 1 - ema_decay. ema may be null.
extern "C" __global__ void __launch_bounds__(256)
    adamw(float* p, const float* __restrict__ g, float* m, float* v, float* ema, const double* norm, int size,
          float clip, float keep, float new_m, float new_v, float rate, float unbias_v, float eps, float new_ema) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size || !isfinite(*norm)) return;
  // The clipped gradient.
  const float gc = g[i] * float(fmin(1.0, clip / (*norm + 1e-6)));
  // Moments, weight decay and update, moving average.
  m[i] += new_m * (gc - m[i]);
  v[i] += new_v * (gc * gc - v[i]);
  p[i] = p[i] * keep - rate * m[i] / (sqrtf(v[i]) * unbias_v + eps);
  if (ema) ema[i] += new_ema * (p[i] - ema[i]);
}
