// Runs CUDA C++ kernels on the CPU, for tests: one fiber for every CUDA thread, blocks one after the other.
//
// It is prepended to the kernels' source, which g++ compiles as C++. A fiber is a thread of execution with its own stack
// that is switched by a few instructions. Each warp runs until all its lanes wait at a barrier of the thread block, in
// one of several orders: forward, backward or shuffled. In one of them, a kernel that lacks a barrier reads memory before
// it is written, or after it is overwritten. Shared memory starts as NaN; the destination of an asynchronous copy is NaN
// until the copy is waited for. Threads that diverge at a barrier are an error that names the lines, not a hang.
#pragma once
#define SIMULATED
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#error "the simulator switches stacks in x86-64 assembly"
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static __attribute__((section("shared_memory")))  // one section, so that it can be filled with NaN
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(simulator::dynamic_shared)
extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

struct uint3 { unsigned x, y, z; };
struct __attribute__((aligned(8))) float2 { float x, y; };
struct __attribute__((aligned(16))) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint3 threadIdx, blockIdx, blockDim, gridDim;
using std::isfinite; using std::isnan; using std::max; using std::min;

namespace simulator {

enum State : uint8_t { READY, AT_WARP, AT_BLOCK, DONE };
const char* const STATES[] = {"runs", "waits for its warp", "waits at __syncthreads", "has returned"};
constexpr size_t STACK = 64 * 1024;

struct Copy { float *to; const float* from; int count; };  // from null: zeros

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = READY;
  int line = 0;
  unsigned mask = 0, index = 0;
  uint3 thread{};
  const void* fragments = nullptr;            // the fragments that the other lanes of the warp read in an mma
  alignas(16) char out[16], latched[16];  // a lane's value in a shuffle, and its copy once all lanes have arrived
  std::vector<std::vector<Copy>> groups{1};
};

inline std::vector<Fiber> fibers;
inline Fiber scheduler;
inline Fiber* current = nullptr;
inline void (*body)(void*) = nullptr;
inline void* body_argument = nullptr;
inline char* dynamic_shared = nullptr;
inline size_t dynamic_size = 0;
inline unsigned threads = 0, random_state = 1;
inline int order = 0;  // 0 forward, 1 backward, 2 and more: shuffled
inline bool failed = false;
inline char error[512] = "";

extern "C" void simulator_switch(void** save, void* load);
__asm__(R"(
.text
.weak simulator_switch
.type simulator_switch,@function
simulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simulator_switch,.-simulator_switch
)");

inline void to_scheduler() { simulator_switch(&current->stack_pointer, scheduler.stack_pointer); }

inline void entry() {
  body(body_argument);
  current->state = DONE;
  to_scheduler();
  __builtin_trap();
}

inline void prepare(Fiber& f) {
  void** top = (void**)(f.stack + STACK);
  *--top = nullptr;  // an unused return address: the stack is aligned as after a call
  *--top = (void*)entry;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f.stack_pointer = top, f.state = READY, f.line = 0, f.groups.assign(1, {});
}

__attribute__((noinline)) inline void wait_for_block(int line) {
  current->state = AT_BLOCK, current->line = line;
  to_scheduler();
}

__attribute__((noinline)) inline void wait_for_warp(unsigned mask, int line) {
  current->state = AT_WARP, current->line = line, current->mask = mask;
  to_scheduler();
}

inline unsigned random_number() {
  random_state ^= random_state << 13, random_state ^= random_state >> 17, random_state ^= random_state << 5;
  return random_state;
}

template <class T>
void shuffle(std::vector<T>& a) {
  for (unsigned i = a.size(); i > 1; i--) std::swap(a[i - 1], a[random_number() % i]);
}

// Resume the lanes of a warp whose whole mask has arrived at the same line; returns whether valid were any.
inline bool resume_lanes(unsigned warp) {
  const unsigned low = warp * 32, lanes = min(threads - low, 32u);
  bool resumed = false;
  for (unsigned first = 0; first < lanes; first++) {
    const Fiber& a = fibers[low + first];
    if (a.state != AT_WARP || !(a.mask >> first & 1)) continue;
    bool all = true;
    for (unsigned l = 0; l < lanes; l++) {
      const Fiber& b = fibers[low + l];
      if (a.mask >> l & 1) all = all && b.state == AT_WARP && b.line == a.line && b.mask == a.mask;
    }
    if (!all) continue;
    const unsigned mask = a.mask;
    for (unsigned l = 0; l < lanes; l++)
      if (mask >> l & 1) memcpy(fibers[low + l].latched, fibers[low + l].out, 16), fibers[low + l].state = READY;
    resumed = true;
  }
  return resumed;
}

inline void report(unsigned a, unsigned b) {
  failed = true;
  snprintf(error, sizeof error, "block (%u,%u,%u): threads diverge: %u %s (line %d), %u %s (line %d)", blockIdx.x,
           blockIdx.y, blockIdx.z, a, STATES[fibers[a].state], fibers[a].line, b, STATES[fibers[b].state], fibers[b].line);
}

inline void run_block() {
  std::vector<unsigned> warps((threads + 31) / 32), lanes(32);
  for (unsigned i = 0; i < warps.size(); i++) warps[i] = order == 1 ? warps.size() - 1 - i : i;
  for (unsigned i = 0; i < 32; i++) lanes[i] = order == 1 ? 31 - i : i;
  for (unsigned i = 0; i < threads; i++) prepare(fibers[i]);
  for (;;) {
    if (order >= 2) shuffle(warps), shuffle(lanes);
    for (unsigned warp : warps) do
        for (unsigned lane : lanes) {
          const unsigned i = warp * 32 + lane;
          if (i >= threads || fibers[i].state != READY) continue;
          current = &fibers[i], threadIdx = current->thread;
          simulator_switch(&scheduler.stack_pointer, current->stack_pointer);
        }
      while (resume_lanes(warp));
    unsigned done = 0;
    for (unsigned i = 0; i < threads; i++) {
      done += fibers[i].state == DONE;
      if (fibers[i].state != fibers[0].state || fibers[i].line != fibers[0].line)
        if (fibers[i].state != DONE || fibers[0].state != DONE) return report(0, i);
    }
    if (done == threads) return;
    if (fibers[0].state != AT_BLOCK) return report(0, 0);
    for (unsigned i = 0; i < threads; i++) fibers[i].state = READY;
  }
}

template <class F, size_t... I, class... A>
void call(F kernel, void** arguments, std::index_sequence<I...>, std::tuple<A...>*) {
  kernel(*(A*)arguments[I]...);
}

// Run one kernel over a grid; returns whether it failed, with the message in `error`.
template <class... A>
int launch(void (*kernel)(A...), uint3 grid, unsigned block, size_t shared, void** arguments) {
  struct Call { void (*kernel)(A...); void** arguments; } todo{kernel, arguments};
  body_argument = &todo;
  body = [](void* v) { auto* t = (Call*)v; call(t->kernel, t->arguments, std::index_sequence_for<A...>{}, (std::tuple<A...>*)nullptr); };
  gridDim = grid, blockDim = {block, 1, 1}, threads = block, failed = false, error[0] = 0, random_state = 2463534242u + order;
  const size_t fixed = __start_shared_memory ? size_t(__stop_shared_memory - __start_shared_memory) : 0;
  while (fibers.size() < threads) fibers.emplace_back().stack = (char*)aligned_alloc(4096, STACK);
  for (unsigned i = 0; i < threads; i++) fibers[i].index = i, fibers[i].thread = {i, 0, 0};
  if (dynamic_size < shared || !dynamic_shared) {
    free(dynamic_shared);
    dynamic_size = (shared + 4096) / 4096 * 4096, dynamic_shared = (char*)aligned_alloc(4096, dynamic_size);
  }
  const size_t blocks = size_t(grid.x) * grid.y * grid.z;
  for (size_t k = 0; k < blocks && !failed; k++) {
    const size_t i = order == 1 ? blocks - 1 - k : k;
    blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / (size_t(grid.x) * grid.y))};
    if (fixed) memset(__start_shared_memory, 0xFF, fixed);  // NaN
    memset(dynamic_shared, 0xFF, shared);
    run_block();
  }
  return failed;
}

// The types of a kernel's arguments, a letter each: pointers to float F, double D, int I; float f, int i.
template <class T>
constexpr char kind() {
  using U = std::remove_cv_t<T>;
  using Target = std::remove_cv_t<std::remove_pointer_t<U>>;
  if (std::is_pointer_v<U>) return std::is_same_v<Target, double> ? 'D' : std::is_same_v<Target, int> ? 'I' : 'F';
  return std::is_same_v<U, float> ? 'f' : std::is_same_v<U, int> ? 'i' : '?';
}

template <class... A>
const char* kinds(void (*)(A...)) { static const char letters[] = {kind<A>()..., 0}; return letters; }

// Each lane of the mask publishes its value and reads that of lane `from`.
template <class T>
T exchange(unsigned mask, T value, int from, int line) {
  static_assert(sizeof(T) <= 16);
  memcpy(current->out, &value, sizeof(T));
  wait_for_warp(mask, line);
  memset(&value, 0xFF, sizeof(T));
  if (mask >> from & 1) memcpy(&value, fibers[(current->index & ~31u) + from].latched, sizeof(T));
  return value;
}

inline void copy_later(float* to, const float* from, int count, bool valid) {
  memset(to, 0xFF, count * sizeof(float));
  current->groups.back().push_back({to, valid ? from : nullptr, count});
  if ((uintptr_t)to % (count * sizeof(float)) || (uintptr_t)from % (count * sizeof(float))) failed = true, strcpy(error, "a copy is not aligned");
}

inline void finish_copies(size_t left) {
  auto& groups = current->groups;  // the last group is not yet committed
  for (; groups.size() - 1 > left; groups.erase(groups.begin()))
    for (const Copy& copy : groups.front())
      for (int i = 0; i < copy.count; i++) copy.to[i] = copy.from ? copy.from[i] : 0;
}

// float32 truncated to TF32.
inline float to_tf32(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4), bits &= ~0x1fffu, memcpy(&x, &bits, 4);
  return x;
}

// d (16 x 8) += a (16 x 8) b (8 x 8); the layout over the lanes is in common.cu.
inline void multiply(float* d, const float* a, const float* b) {
  struct Fragments { const float *a, *b; } mine{a, b};
  current->fragments = &mine;
  wait_for_warp(~0u, -1);
  const Fiber* warp = &fibers[current->index & ~31u];
  const int lane = current->index % 32, g = lane / 4, t = lane % 4;
  auto A = [&](int row, int k) { return to_tf32(((const Fragments*)warp[row % 8 * 4 + k % 4].fragments)->a[row / 8 + k / 4 * 2]); };
  auto B = [&](int k, int col) { return to_tf32(((const Fragments*)warp[col * 4 + k % 4].fragments)->b[k / 4]); };
  float sums[4];
  for (int e = 0; e < 4; e++) {
    sums[e] = d[e];
    for (int k = 0; k < 8; k++) sums[e] += A(g + e / 2 * 8, k) * B(k, 2 * t + e % 2);
  }
  wait_for_warp(~0u, -2);
  memcpy(d, sums, sizeof sums);
}

}  // namespace simulator

#define __syncthreads() simulator::wait_for_block(__LINE__)
#define __shfl_xor_sync(mask, value, step) simulator::exchange(mask, value, int(simulator::current->index % 32) ^ (step), __LINE__)
inline void copy16(float* to, const float* from, bool valid) { simulator::copy_later(to, from, 4, valid); }
inline void copy4(float* to, const float* from, bool valid) { simulator::copy_later(to, from, 1, valid); }
inline void commit_copies() { simulator::current->groups.emplace_back(); }
template <int LEFT> void wait_copies() { simulator::finish_copies(LEFT); }
inline void mma_16x8x8(float* d, const float (&a)[4], const float (&b)[2]) { simulator::multiply(d, a, b); }

#define EXPORT(name)                                                                                             \
  extern "C" int launch_##name(unsigned x, unsigned y, unsigned z, unsigned block, size_t shared, void** a) {    \
    return simulator::launch(name, uint3{x, y, z}, block, shared, a);                                            \
  }                                                                                                              \
  extern "C" const char* kinds_##name() { return simulator::kinds(name); }
#define EXPORT_ALL                                                  \
  extern "C" const char* simulator_error() { return simulator::error; } \
  extern "C" void simulator_order(int order) { simulator::order = order; }
