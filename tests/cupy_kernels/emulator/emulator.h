// Runs a CUDA source on the host: what cupy_kernels/csrc/device.cuh gives on a device, for a C++ compiler.
//
// Each CUDA thread is a fiber, each block in flight one thread of the system. Warp collectives (shuffles, ldmatrix,
// mma) run when the last lane arrives; barriers count the threads that live; shared memory starts as NaN.
//
// It is an adversary. EMULATOR_ASYNC=late: an asynchronous copy lands at the last moment that is allowed, at its wait;
// mix: copies land at once, wgmma reads and writes at its wait; eager: all at once, as on a lucky GPU.
// EMULATOR_ORDER=forward | reverse | random:SEED: who runs first, so that a missing barrier shows.
//
// Not checked: fences between proxies, bank conflicts, clusters, the tensor cores' own order of summation, speed.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#define __device__
#define __restrict__ __restrict
#define DEVICE inline
#define KERNEL(threads, blocks, name) static void name
#define BY_VALUE const
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::block->shared
#define REGISTER_KERNEL(name)                                                                                         \
  extern "C" int launch_##name(const unsigned* grid, const unsigned* threads, size_t shared, void** args, int workers) { \
    return emulator::launch_packed(#name, name, grid, threads, shared, args, workers);                                  \
  }

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct int4 { int x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __nv_bfloat16 bf16;
typedef __nv_bfloat162 bf16x2;

static inline float __bfloat162float(bf16 b) {
  uint32_t bits = (uint32_t)b.bits << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static inline bf16 __float2bfloat16(float value) {  // to nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
#define __expf(x) expf(x)
#define __fdividef(x, y) ((x) / (y))
static inline float emulated_rsqrtf(float x) { return 1.f / sqrtf(x); }
#define rsqrtf emulated_rsqrtf

namespace emulator {

struct WgmmaOp {
  uint64_t a, b;
  bool accumulate, column_major_b;
  int columns;
  float* d[32];
};
struct Warp {
  int arrived = 0, count = 0, tag = -1;
  volatile unsigned generation = 0;
  uint64_t in[32][12];
  uint32_t out[32][12];
  std::vector<std::vector<WgmmaOp>> committed;  // groups of wgmma that no wait has asked for yet
  std::vector<WgmmaOp> open;
};
struct Copy { void* to; const void* from; bool valid; };
struct Fiber {
  void* stack_pointer = nullptr;
  bool done = false;
  dim3 thread;
  int lane = 0;
  Warp* warp = nullptr;
  const volatile unsigned* waits_on = nullptr;  // runs again when this no longer is ...
  unsigned waits_while = 0;                     // ... this
  std::vector<std::vector<Copy>> committed;     // groups of cp.async
  std::vector<Copy> open;
};
struct Barrier { int count = 0, pending = 0; long bytes = 0; volatile unsigned generation = 0; };
struct Sync { int arrived = 0; volatile unsigned generation = 0; };
struct Block {
  dim3 index, threads, grid;
  unsigned char* shared = nullptr;
  size_t shared_size = 0;
  int alive = 0;
  Sync sync;
  void* scheduler = nullptr;
  const std::function<void()>* body = nullptr;
  std::unordered_map<void*, Barrier> barriers;
  std::deque<std::function<void()>> in_flight;  // TMA copies
};
extern thread_local Block* block;
extern thread_local Fiber* fiber;
extern bool late_copies, late_products;

extern "C" void emulator_switch(void** save, void* load);
[[noreturn]] void fail(const char* what, int tag = 0);  // ends the launch; emulator_message() says why
static inline void wait_while(const volatile unsigned* place, unsigned value) {
  fiber->waits_on = place;
  fiber->waits_while = value;
  emulator_switch(&fiber->stack_pointer, block->scheduler);
}
static inline void release(Sync& sync, int alive) {
  if (sync.arrived && sync.arrived >= alive) {
    sync.arrived = 0;
    sync.generation = sync.generation + 1;
  }
}
// All lanes of the warp deposit what they have in warp.in; the last runs `last`; each finds its result in warp.out.
template <class Last> static inline void collective(int tag, Last&& last) {
  Warp& warp = *fiber->warp;
  if (warp.arrived == 0) warp.tag = tag;
  else if (warp.tag != tag) fail("lanes of a warp are in different collectives", tag);
  unsigned generation = warp.generation;
  if (++warp.arrived == warp.count) {
    last(warp);
    warp.arrived = 0;
    warp.generation = generation + 1;
  } else {
    wait_while(&warp.generation, generation);
  }
}

int launch(const char* name, const unsigned* grid, const unsigned* threads, size_t shared,
           const std::function<void()>& body, int workers);
template <class T> static inline T argument(const void* place) {
  T value;
  memcpy(&value, place, sizeof value);
  return value;
}
template <class... A, size_t... I>
int launch_unpacked(const char* name, void (*kernel)(A...), const unsigned* grid, const unsigned* threads, size_t shared,
                    void** args, int workers, std::index_sequence<I...>) {
  return launch(name, grid, threads, shared, [=] { kernel(argument<std::remove_const_t<A>>(args[I])...); }, workers);
}
template <class... A>
int launch_packed(const char* name, void (*kernel)(A...), const unsigned* grid, const unsigned* threads, size_t shared,
                  void** args, int workers) {
  return launch_unpacked(name, kernel, grid, threads, shared, args, workers, std::index_sequence_for<A...>());
}

}  // namespace emulator

#define threadIdx (emulator::fiber->thread)
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->threads)
#define gridDim (emulator::block->grid)

static inline void __syncthreads() {
  emulator::Sync& sync = emulator::block->sync;
  unsigned generation = sync.generation;
  sync.arrived++;
  emulator::release(sync, emulator::block->alive);
  if (sync.generation == generation) emulator::wait_while(&sync.generation, generation);
}
static inline float __shfl_xor_sync(unsigned, float value, int mask) {
  auto& mine = emulator::fiber->warp->in[emulator::fiber->lane];
  memcpy(&mine[0], &value, 4);
  mine[1] = (uint64_t)(emulator::fiber->lane ^ mask);
  emulator::collective(1, [](emulator::Warp& warp) {
    for (int lane = 0; lane < warp.count; lane++) memcpy(&warp.out[lane][0], &warp.in[warp.in[lane][1]][0], 4);
  });
  float result;
  memcpy(&result, &emulator::fiber->warp->out[emulator::fiber->lane][0], 4);
  return result;
}
static inline uint4 load_once(const void* p) {
  if ((uintptr_t)p & 15) emulator::fail("a load of 16 bytes is not aligned to them");
  return *(const uint4*)p;
}

// ---- sm_80 ------------------------------------------------------------------------------------------------------

static inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  int lane = emulator::fiber->lane;
  uint32_t* in = (uint32_t*)emulator::fiber->warp->in[lane];
  memcpy(in, a, 16);
  in[4] = b0;
  in[5] = b1;
  memcpy(in + 6, d, 16);
  emulator::collective(2, [](emulator::Warp& warp) {
    if (warp.count != 32) emulator::fail("mma with a partial warp");
    alignas(64) float A[16][16], B[16][8], C[16][8];
    auto low = [](uint32_t two) { two <<= 16; float f; memcpy(&f, &two, 4); return f; };
    auto high = [](uint32_t two) { two &= 0xffff0000u; float f; memcpy(&f, &two, 4); return f; };
    for (int l = 0; l < 32; l++) {
      const uint32_t* x = (uint32_t*)warp.in[l];
      int g = l >> 2, t = (l & 3) * 2;
      A[g][t] = low(x[0]), A[g][t + 1] = high(x[0]);
      A[g + 8][t] = low(x[1]), A[g + 8][t + 1] = high(x[1]);
      A[g][t + 8] = low(x[2]), A[g][t + 9] = high(x[2]);
      A[g + 8][t + 8] = low(x[3]), A[g + 8][t + 9] = high(x[3]);
      B[t][g] = low(x[4]), B[t + 1][g] = high(x[4]);
      B[t + 8][g] = low(x[5]), B[t + 9][g] = high(x[5]);
      memcpy(&C[g][t], x + 6, 8);
      memcpy(&C[g + 8][t], x + 8, 8);
    }
    for (int i = 0; i < 16; i++)
      for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) C[i][j] += A[i][k] * B[k][j];
    for (int l = 0; l < 32; l++) {
      int g = l >> 2, t = (l & 3) * 2;
      memcpy(warp.out[l], &C[g][t], 8);
      memcpy(warp.out[l] + 2, &C[g + 8][t], 8);
    }
  });
  memcpy(d, emulator::fiber->warp->out[lane], 16);
}
static inline void load_four_matrices(uint32_t (&r)[4], const void* p, bool transposed) {
  int lane = emulator::fiber->lane;
  if ((uintptr_t)p & 15) emulator::fail("a row of ldmatrix is not aligned to 16 bytes");
  emulator::fiber->warp->in[lane][0] = (uint64_t)p;
  emulator::collective(transposed ? 4 : 3, [=](emulator::Warp& warp) {
    for (int i = 0; i < 4; i++)
      for (int l = 0; l < 32; l++) {
        uint16_t* out = (uint16_t*)&warp.out[l][i];
        for (int e = 0; e < 2; e++) {
          int row = transposed ? (l & 3) * 2 + e : l >> 2, column = transposed ? l >> 2 : (l & 3) * 2 + e;
          out[e] = ((const uint16_t*)warp.in[i * 8 + row][0])[column];
        }
      }
  });
  memcpy(r, emulator::fiber->warp->out[lane], 16);
}
static inline void load_matrices(uint32_t (&r)[4], const void* p) { load_four_matrices(r, p, false); }
static inline void load_matrices_transposed(uint32_t (&r)[4], const void* p) { load_four_matrices(r, p, true); }

static inline void run_copy(const emulator::Copy& copy) {
  if (copy.valid) memcpy(copy.to, copy.from, 16);
  else memset(copy.to, 0, 16);
}
static inline void copy_async(void* to, const void* from, bool valid) {
  if (((uintptr_t)to & 15) || (valid && ((uintptr_t)from & 15))) emulator::fail("cp.async is not aligned to 16 bytes");
  if (emulator::late_copies) emulator::fiber->open.push_back({to, from, valid});
  else run_copy({to, from, valid});
}
static inline void copy_async_commit() {
  emulator::fiber->committed.push_back(std::move(emulator::fiber->open));
  emulator::fiber->open.clear();
}
template <int N> static inline void copy_async_wait() {
  auto& groups = emulator::fiber->committed;
  while ((int)groups.size() > N) {
    for (auto& copy : groups.front()) run_copy(copy);
    groups.erase(groups.begin());
  }
}

#include "hopper.h"
