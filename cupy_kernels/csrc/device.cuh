// The one header that every kernel includes: thin wrappers around PTX. On a host compiler the same names come from the
// emulator (tests/cupy_kernels/emulator), so a kernel written against this file runs on a CPU as it stands.
//
// A wrapper holds one instruction, because the emulator cannot check the PTX inside: each has a test on the device.
#pragma once
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

#include <cuda_bf16.h>
#if defined(__CUDACC_RTC__)  // NVRTC has no <cstdint>
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

typedef __nv_bfloat16 bf16;
typedef __nv_bfloat162 bf16x2;

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks, name) extern "C" __global__ void __launch_bounds__(threads, blocks) name
#define REGISTER_KERNEL(name)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define BY_VALUE const __grid_constant__

DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// ---- sm_80: ldmatrix, mma.sync, cp.async ------------------------------------------------------------------------

// Four 8x8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
// The same, each matrix transposed.
DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// 16 bytes, global to shared; zeros where not `valid` (the source is then not read).
DEVICE void copy_async(void* to, const void* from, bool valid) {
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- loads and stores with a say in caching ---------------------------------------------------------------------

DEVICE uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// ---- sm_90a: mbarrier, TMA, wgmma -------------------------------------------------------------------------------

struct alignas(64) TensorMap { unsigned long long opaque[16]; };  // CUtensorMap, passed by value

DEVICE void barrier_init(uint64_t* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}
DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}
DEVICE void barrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
DEVICE void barrier_expect(uint64_t* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
DEVICE void barrier_wait(uint64_t* b, int parity) {
  asm volatile("{ .reg .pred P; WAIT: mbarrier.try_wait.parity.shared::cta.b64 P, [%0], %1; @P bra.uni DONE; "
               "bra.uni WAIT; DONE: }" ::"r"(shared_address(b)), "r"(parity) : "memory");
}
// A box of the tensor, its corner at (column, row), into shared memory with the 128-byte swizzle; outside is zero.
DEVICE void tma_load(void* to, const TensorMap* map, uint64_t* barrier, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row) : "memory");
}

// Shared-memory descriptors of wgmma, 128-byte swizzle (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory
// Layout", canonical layouts). Bits 0-13 address / 16, 16-29 leading offset / 16, 32-45 stride offset / 16, 62-63 swizzle.
DEVICE uint64_t descriptor(const void* p, int leading_bytes, int stride_bytes) {
  return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | (uint64_t)(leading_bytes >> 4) << 16 |
         (uint64_t)(stride_bytes >> 4) << 32 | (uint64_t)1 << 62;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
template <int N> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

#define REGS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define REGS16(i) REGS4(i), REGS4(i + 4), REGS4(i + 8), REGS4(i + 12)
#define REGS_16 REGS16(0)
#define REGS_32 REGS_16, REGS16(16)
#define REGS_48 REGS_32, REGS16(32)
#define REGS_64 REGS_48, REGS16(48)
#define REGS_80 REGS_64, REGS16(64)
#define REGS_96 REGS_80, REGS16(80)
#define REGS_112 REGS_96, REGS16(96)
#define REGS_128 REGS_112, REGS16(112)
#define NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_32 NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_48 NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define NAMES_64 NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_80 NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define NAMES_96 NAMES_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NAMES_112 NAMES_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define NAMES_128 NAMES_112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// d += A B, or = where not `accumulate`; A [64, 16] and B [16, columns] by descriptor. Accumulator of lane l, warp w:
// d[4 j + r] is row 16 w + l / 4 + 8 (r / 2), column 8 j + 2 (l % 4) + r % 2. The names of the inputs follow the outputs'.
#define WGMMA(registers, columns, a_, b_, accumulate_, column_major_)                                                  \
  template <bool kColumnMajorB> DEVICE void wgmma(float (&d)[registers], uint64_t a, uint64_t b, bool accumulate) {    \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " accumulate_ ", 0; wgmma.mma_async.sync.aligned.m64n" #columns       \
                 "k16.f32.bf16.bf16 {" NAMES_##registers "}, " a_ ", " b_ ", p, 1, 1, 0, " column_major_ "; }"         \
                 : REGS_##registers : "l"(a), "l"(b), "r"((int)accumulate), "n"((int)kColumnMajorB));                  \
  }
WGMMA(32, 64, "%32", "%33", "%34", "%35")
WGMMA(48, 96, "%48", "%49", "%50", "%51")
WGMMA(64, 128, "%64", "%65", "%66", "%67")
WGMMA(80, 160, "%80", "%81", "%82", "%83")
WGMMA(96, 192, "%96", "%97", "%98", "%99")
WGMMA(128, 256, "%128", "%129", "%130", "%131")
#endif  // sm_90a

#else
#include "emulator.h"
#endif

// ---- shared by all targets --------------------------------------------------------------------------------------

DEVICE float low_half(uint32_t two) {  // a bf16 is the upper half of an fp32
  uint32_t bits = two << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
DEVICE float high_half(uint32_t two) {
  uint32_t bits = two & 0xffff0000u;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
DEVICE float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }
DEVICE float silu(float x) { return x * sigmoid(x); }
DEVICE float rounded(float x) { return __bfloat162float(__float2bfloat16(x)); }
DEVICE float warp_sum(float v) {
  for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}
// N neighbouring bf16, loaded and stored as one.
template <int N> struct alignas(N * 2) Packed {
  uint32_t two[N / 2];
  DEVICE float operator[](int i) const { return i % 2 ? high_half(two[i / 2]) : low_half(two[i / 2]); }
};
template <int N> DEVICE Packed<N> load(const bf16* p) { return *(const Packed<N>*)p; }
template <int N> DEVICE void store(bf16* p, const float (&v)[N]) {
  Packed<N> packed;
#pragma unroll
  for (int i = 0; i < N / 2; i++) {
    bf16x2 pair;
    pair.x = __float2bfloat16(v[2 * i]);
    pair.y = __float2bfloat16(v[2 * i + 1]);
    memcpy(&packed.two[i], &pair, 4);
  }
  *(Packed<N>*)p = packed;
}
