// The same products for Hopper (sm_90a): persistent blocks, one warpgroup that loads by TMA, two that multiply by wgmma.
//
// tiles[m] = {first row, rows (1..128), expert, 0}. Tile t of the result is tiles[t % num_tiles] by the columns of
// t / num_tiles, so that blocks which work at the same time share the weights in L2. TMA takes any first row, so nothing
// is permuted or padded: rows past the tile's end are multiplied and not stored, what lies outside a tensor is loaded as
// zeros.
//
// K depth of the product, N columns of the result; a step is BK deep.
#include "epilogues.cuh"

constexpr int BM = 128, BK = 64, THREADS = 384;
constexpr int BOX = 64 * 128;                  // 64 rows of 128 bytes, the unit of the swizzle times eight
constexpr int A_BYTES = BM * BK * 2;

// The pipeline: `full` counts one arrival (the loader) and the bytes, `empty` one arrival of each multiplying warpgroup.
template <int kStages, int kStageBytes> struct Pipeline {
  uint64_t *full, *empty;
  unsigned char* data;
  int stage = 0, phase;
  DEVICE Pipeline(unsigned char* shared, int phase) : data(shared), phase(phase) {
    full = (uint64_t*)(shared + kStages * kStageBytes);
    empty = full + kStages;
  }
  DEVICE void init() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; i++) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, 2);
      }
      barrier_init_fence();
    }
    __syncthreads();
  }
  DEVICE unsigned char* bytes() const { return data + stage * kStageBytes; }
  DEVICE void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// Steps [from, to) of tile t.
struct Share { int t, from, to; };

// What this block does: of the first `whole` tiles every gridDim.x-th, in one piece. The others are fewer than two for
// each block, and in one piece would leave many blocks idle: their steps, one tile after another, are shared out evenly
// (stream-K, arXiv 2301.03598).
struct Schedule {
  int total, whole, depth;  // tiles; of them in one piece; steps of a tile
  int t, at, end;           // the next whole tile; the next and the last of this block's steps of the others
  DEVICE Schedule(int total, int whole, int K) : total(total), whole(whole), depth((K + BK - 1) / BK), t(blockIdx.x) {
    at = first_step(blockIdx.x), end = first_step(blockIdx.x + 1);
  }
  DEVICE int shared_steps() const { return (total - whole) * depth; }
  DEVICE int first_step(int block) const { return (int)((long long)shared_steps() * block / gridDim.x); }
  DEVICE int block_of(int step) const { return (int)(((step + 1LL) * gridDim.x - 1) / shared_steps()); }
  DEVICE bool next(Share& share) {
    if (t < whole) {
      share = {t, 0, depth};
      t += gridDim.x;
      return true;
    }
    if (at == end) return false;
    int from = at % depth, steps = end - at < depth - from ? end - at : depth - from;
    share = {whole + at / depth, from, from + steps};
    at += steps;
    return true;
  }
};

// Loads: A's box of 128 rows, then whatever `load_b(place, barrier, tile, n, k)` issues.
template <class P, class LoadB>
DEVICE void produce(P pipe, Schedule schedule, const TensorMap* a, const int4* tiles, int num_tiles, int bytes,
                    LoadB load_b) {
  for (Share share; schedule.next(share);) {
    int4 tile = tiles[share.t % num_tiles];
    for (int k = share.from * BK; k < share.to * BK; k += BK) {
      barrier_wait(pipe.empty + pipe.stage, pipe.phase);
      uint64_t* barrier = pipe.full + pipe.stage;
      barrier_expect(barrier, bytes);
      tma_load(pipe.bytes(), a, barrier, k, tile.x);
      load_b(pipe.bytes() + A_BYTES, barrier, tile, share.t / num_tiles, k);
      pipe.next();
    }
  }
}

// Multiplies, 2 x registers columns; `store(share, d)` ends a share.
template <bool kColumnMajorB, int kRegisters, class P, class Store>
DEVICE void consume(P pipe, Schedule schedule, Store store) {
  int thread = threadIdx.x, group = (thread >> 7) - 1;
  bool leader = (thread & 127) == 0;
  constexpr int kStep = kColumnMajorB ? 16 * 128 : 32;  // 16 deep: rows of a box, or 16 elements along a row
  for (Share share; schedule.next(share);) {
    float d[kRegisters];
    int before = -1;  // the stage whose products may still be running
    for (int step = share.from; step < share.to; step++) {
      barrier_wait(pipe.full + pipe.stage, pipe.phase);
      unsigned char* place = pipe.bytes();
      uint64_t a = descriptor(place + group * BOX, 16, 1024);
      uint64_t b = kColumnMajorB ? descriptor(place + A_BYTES, BOX, 1024) : descriptor(place + A_BYTES, 16, 1024);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < BK / 16; i++)
        wgmma<kColumnMajorB>(d, a + i * (32 >> 4), b + i * (kStep >> 4), step + i > share.from);
      wgmma_commit();
      wgmma_wait<1>();  // all but the newest are done: the stage before is free
      if (before >= 0 && leader) barrier_arrive(pipe.empty + before);
      before = pipe.stage;
      pipe.next();
    }
    wgmma_wait<0>();
    if (leader) barrier_arrive(pipe.empty + before);
    store(share, d);
  }
}

// The products of a tile that several blocks have a share of. Each leaves its own in `sums`; the last to come adds them
// up, from the first step to the last, so that the same call gives the same bits. Nobody waits for anybody: `arrived`
// counts for each warp of a shared tile, from zero.
struct Shared {
  float* sums;  // of each block two tiles: the one that it ends and the one that it begins
  int* arrived;
  static constexpr int WARPS = (THREADS - 128) / 32;

  // Whether this thread now holds the sum.
  template <int kRegisters> DEVICE bool add_up(const Schedule& schedule, Share share, float (&d)[kRegisters]) const {
    if (share.to - share.from == schedule.depth) return true;
    int lane = threadIdx.x & 31, tile = share.t - schedule.whole;
    int first = schedule.block_of(tile * schedule.depth), last = schedule.block_of((tile + 1) * schedule.depth - 1);
    float* mine = place<kRegisters>(blockIdx.x, share.from == 0);
#pragma unroll
    for (int r = 0; r < kRegisters; r++) store_global(mine + r * WARPS * 32, d[r]);
    __syncwarp();
    int before = 0;
    if (lane == 0) {  // for the whole warp: what its lanes have stored, and what they will load
      __threadfence();
      before = atomicAdd(arrived + tile * WARPS + threadIdx.x / 32 - 4, 1);
      __threadfence();
    }
    if (__shfl_sync(0xffffffffu, before, 0) != last - first) return false;
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRegisters; r++) d[r] = 0;
    for (int block = first; block <= last; block++) {
      const float* part = place<kRegisters>(block, block == first);
#pragma unroll
      for (int r = 0; r < kRegisters; r++) d[r] += load_global(part + r * WARPS * 32);
    }
    return true;
  }
  template <int kRegisters> DEVICE float* place(int block, bool begins) const {
    return sums + (size_t)(2 * block + begins) * kRegisters * WARPS * 32 + threadIdx.x - 128;
  }
};

// Calls body(row in the tile, half) for the two rows of an accumulator that this thread holds and that exist.
template <class Body> DEVICE void for_rows(int4 tile, Body body) {
  int thread = threadIdx.x & 127, group = (threadIdx.x >> 7) - 1;
  int first = group * 64 + (thread >> 5) * 16 + (thread & 31) / 4;
#pragma unroll
  for (int half = 0; half < 2; half++)
    if (first + half * 8 < tile.y) body((size_t)tile.x + first + half * 8, half);
}
template <class Epilogue>
DEVICE void finish(const float (&d)[64], int4 tile, int n0, int N, const Epilogue& epilogue) {
  for_rows(tile, [&](size_t row, int half) {
#pragma unroll
    for (int j = 0; j < 16; j++) {
      int column = n0 + j * 8 + (threadIdx.x & 3) * 2;
      if (column < N) epilogue(row, column, d[j * 4 + half * 2], d[j * 4 + half * 2 + 1]);
    }
  });
}

// H [T, N] = silu(X gate^T) * (X up^T); G and U are stored where not null. X [T, K]. The 256 columns of one product are
// 128 of gate and the same 128 of up, so the SwiGLU happens in the registers of one thread.
KERNEL(THREADS, 1, gate_up_sm90)
(BY_VALUE TensorMap x, BY_VALUE TensorMap gate0, BY_VALUE TensorMap up0, BY_VALUE TensorMap gate1,
 BY_VALUE TensorMap up1, bf16* H, bf16* G, bf16* U, const int4* tiles, int num_tiles, int K, int N) {
  DYNAMIC_SHARED(shared);
  constexpr int kColumns = 128, kBytes = A_BYTES + 4 * BOX;
  using Pipe = Pipeline<4, kBytes>;
  bool loads = threadIdx.x < 128;
  Pipe pipe(shared, loads ? 1 : 0);
  pipe.init();
  int total = num_tiles * ((N + kColumns - 1) / kColumns);
  Schedule schedule(total, total, K);
  if (loads) {
    fewer_registers<40>();
    if (threadIdx.x == 0)
      produce(pipe, schedule, &x, tiles, num_tiles, kBytes,
              [&](unsigned char* place, uint64_t* barrier, int4 tile, int n, int k) {
                tma_load(place, tile.z ? &gate1 : &gate0, barrier, k, n * kColumns);
                tma_load(place + 2 * BOX, tile.z ? &up1 : &up0, barrier, k, n * kColumns);
              });
  } else {
    more_registers<232>();
    SwiGLU epilogue{H, G, U, N};
    consume<false, 128>(pipe, schedule, [&](Share share, float (&d)[128]) {
      int n = share.t / num_tiles;
      for_rows(tiles[share.t % num_tiles], [&](size_t row, int half) {
#pragma unroll
        for (int j = 0; j < 16; j++) {
          int column = n * kColumns + j * 8 + (threadIdx.x & 3) * 2, r = j * 4 + half * 2;
          if (column < N) epilogue(row, column, d[r], d[r + 1], d[64 + r], d[64 + r + 1]);
        }
      });
    });
  }
}
REGISTER_KERNEL(gate_up_sm90)

// Y [T, N] = X w^T (+ bias) (+ residual). X [T, K]. Narrow and deep, as the down projection is, it has few tiles of many
// steps: all but the first `whole` are shared out.
KERNEL(THREADS, 1, project_sm90)
(BY_VALUE TensorMap x, BY_VALUE TensorMap w0, BY_VALUE TensorMap w1, const bf16* bias0, const bf16* bias1,
 const bf16* residual, bf16* Y, const int4* tiles, int num_tiles, int K, int N, int whole, float* sums, int* arrived) {
  DYNAMIC_SHARED(shared);
  constexpr int kColumns = 128, kBytes = A_BYTES + 2 * BOX;
  using Pipe = Pipeline<6, kBytes>;
  bool loads = threadIdx.x < 128;
  Pipe pipe(shared, loads ? 1 : 0);
  pipe.init();
  Schedule schedule(num_tiles * ((N + kColumns - 1) / kColumns), whole, K);
  if (loads) {
    fewer_registers<40>();
    if (threadIdx.x == 0)
      produce(pipe, schedule, &x, tiles, num_tiles, kBytes,
              [&](unsigned char* place, uint64_t* barrier, int4 tile, int n, int k) {
                tma_load(place, tile.z ? &w1 : &w0, barrier, k, n * kColumns);
              });
  } else {
    more_registers<232>();
    Shared shares{sums, arrived};
    consume<false, 64>(pipe, schedule, [&](Share share, float (&d)[64]) {
      int4 tile = tiles[share.t % num_tiles];
      if (shares.add_up(schedule, share, d))
        finish(d, tile, share.t / num_tiles * kColumns, N, Add{Y, tile.z ? bias1 : bias0, residual, N});
    });
  }
}
REGISTER_KERNEL(project_sm90)

// dY [T, K] through the down projection [K, N] and the SwiGLU: dG, dU, and H anew. B stays as it lies in memory, with N
// contiguous: boxes of 64 columns and 64 rows, and wgmma reads them column-major.
KERNEL(THREADS, 1, swiglu_backward_sm90)
(BY_VALUE TensorMap dy, BY_VALUE TensorMap down0, BY_VALUE TensorMap down1, const bf16* G, const bf16* U, bf16* dG,
 bf16* dU, bf16* H, const int4* tiles, int num_tiles, int K, int N) {
  DYNAMIC_SHARED(shared);
  constexpr int kColumns = 128, kBytes = A_BYTES + 2 * BOX;
  using Pipe = Pipeline<6, kBytes>;
  bool loads = threadIdx.x < 128;
  Pipe pipe(shared, loads ? 1 : 0);
  pipe.init();
  int total = num_tiles * ((N + kColumns - 1) / kColumns);
  Schedule schedule(total, total, K);
  if (loads) {
    fewer_registers<40>();
    if (threadIdx.x == 0)
      produce(pipe, schedule, &dy, tiles, num_tiles, kBytes,
              [&](unsigned char* place, uint64_t* barrier, int4 tile, int n, int k) {
                const TensorMap* down = tile.z ? &down1 : &down0;
                tma_load(place, down, barrier, n * kColumns, k);
                tma_load(place + BOX, down, barrier, n * kColumns + 64, k);
              });
  } else {
    more_registers<232>();
    consume<true, 64>(pipe, schedule, [&](Share share, float (&d)[64]) {
      finish(d, tiles[share.t % num_tiles], share.t / num_tiles * kColumns, N, SwiGLUBackward{G, U, dG, dU, H, N});
    });
  }
}
REGISTER_KERNEL(swiglu_backward_sm90)
