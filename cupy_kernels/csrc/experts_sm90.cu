// The same products for Hopper (sm_90a): persistent blocks, one warpgroup that loads by TMA, two that multiply by wgmma.
//
// tiles[m] = {first row, rows (1..128), expert, 0}. Tile t of the result is tiles[t % num_tiles] by the columns of
// t / num_tiles, so that blocks which work at the same time share the weights in L2. TMA takes any first row, so nothing
// is permuted or padded: rows past the tile's end are multiplied and not stored, what lies outside a tensor is loaded as
// zeros.
//
// Tiles are 128 rows by BN columns. The wider, the less each multiprocessor loads for a product; the fewer rounds, and
// the fuller, the sooner the last block is done. So there is a kernel for each of several widths, and the host chooses
// (kernels.tile_columns).
//
// K depth of the product, N columns of the result; a step is BK deep.
#include "epilogues.cuh"

constexpr int BM = 128, BK = 64, THREADS = 384;
constexpr int BOX = 64 * 128;  // 64 rows of 128 bytes, the unit of the swizzle times eight
constexpr int A_BYTES = BM * BK * 2, SHARED = 226 << 10;  // SHARED: of a block

// The pipeline: `full` counts one arrival (the loader) and the bytes, `empty` one arrival of each multiplying warpgroup.
template <int BN> struct Pipeline {
  static constexpr int BYTES = A_BYTES + BN * BK * 2, STAGES = SHARED / (BYTES + 16) < 8 ? SHARED / (BYTES + 16) : 8;
  uint64_t *full, *empty;
  unsigned char* data;
  int stage = 0, phase;
  DEVICE Pipeline(unsigned char* shared, int phase) : data(shared), phase(phase) {
    full = (uint64_t*)(shared + STAGES * BYTES);
    empty = full + STAGES;
  }
  DEVICE void init() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < STAGES; i++) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, 2);
      }
      barrier_init_fence();
    }
    __syncthreads();
  }
  DEVICE unsigned char* bytes() const { return data + stage * BYTES; }
  DEVICE void next() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

// Loads the tiles of this block, every gridDim.x-th of `total`: A's box of 128 rows, then whatever
// `load_b(place, barrier, tile, n, k)` issues.
template <int BN, class LoadB>
DEVICE void produce(Pipeline<BN> pipe, int total, const TensorMap* a, const int4* tiles, int num_tiles, int K,
                    LoadB load_b) {
  for (int t = blockIdx.x; t < total; t += gridDim.x) {
    int4 tile = tiles[t % num_tiles];
    for (int k = 0; k < K; k += BK) {
      barrier_wait(pipe.empty + pipe.stage, pipe.phase);
      uint64_t* barrier = pipe.full + pipe.stage;
      barrier_expect(barrier, pipe.BYTES);
      tma_load(pipe.bytes(), a, barrier, k, tile.x);
      load_b(pipe.bytes() + A_BYTES, barrier, tile, t / num_tiles, k);
      pipe.next();
    }
  }
}

// Multiplies; `store(t, d)` ends a tile.
template <bool kColumnMajorB, int BN, class Store>
DEVICE void consume(Pipeline<BN> pipe, int total, int K, Store store) {
  int thread = threadIdx.x, group = (thread >> 7) - 1;
  bool leader = (thread & 127) == 0;
  constexpr int kStep = kColumnMajorB ? 16 * 128 : 32;  // 16 deep: rows of a box, or 16 elements along a row
  for (int t = blockIdx.x; t < total; t += gridDim.x) {
    float d[BN / 2];
    int before = -1;  // the stage whose products may still be running
    for (int k = 0; k < K; k += BK) {
      barrier_wait(pipe.full + pipe.stage, pipe.phase);
      unsigned char* place = pipe.bytes();
      uint64_t a = descriptor(place + group * BOX, 16, 1024);
      uint64_t b = kColumnMajorB ? descriptor(place + A_BYTES, BOX, 1024) : descriptor(place + A_BYTES, 16, 1024);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < BK / 16; i++) wgmma<kColumnMajorB>(d, a + i * (32 >> 4), b + i * (kStep >> 4), k + i > 0);
      wgmma_commit();
      wgmma_wait<1>();  // all but the newest are done: the stage before is free
      if (before >= 0 && leader) barrier_arrive(pipe.empty + before);
      before = pipe.stage;
      pipe.next();
    }
    wgmma_wait<0>();
    if (leader) barrier_arrive(pipe.empty + before);
    store(t, d);
  }
}

// Eight columns in a row for each lane, out of the accumulators of one row (half 0 or 1) and the 32 columns from
// 32 * piece: those from 8 * (lane % 4). The quad's four lanes, which hold two of every eight, hand each other the rest,
// so that everything is loaded and stored 16 bytes at a time.
template <int kRegisters>
DEVICE void gather_columns(float (&v)[8], const float (&d)[kRegisters], int half, int piece) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = d[(piece * 4 + i / 2) * 4 + half * 2 + i % 2];
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    bool high = lane & bit;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (i & 2 * bit) continue;
      float &first = v[i], &second = v[i + 2 * bit];
      float other = __shfl_xor_sync(0xffffffffu, high ? first : second, bit);
      first = high ? other : first;
      second = high ? second : other;
    }
  }
}
// The first of a lane's eight columns of a piece.
DEVICE int first_column(int piece) { return piece * 32 + (threadIdx.x & 3) * 8; }
// The row of the tile that this thread holds half 0 or 1 of.
DEVICE int row_of(int half) {
  int thread = threadIdx.x & 127, group = (threadIdx.x >> 7) - 1;
  return group * 64 + (thread >> 5) * 16 + (thread & 31) / 4 + half * 8;
}

template <int kRegisters, class Epilogue>
DEVICE void finish(const float (&d)[kRegisters], int4 tile, int n0, int N, const Epilogue& epilogue) {
  constexpr int PIECES = kRegisters / 16, AHEAD = PIECES < 4 ? PIECES : 4;  // AHEAD: pieces loaded for together
  using Read = typename Epilogue::template Read<8>;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    size_t row = (size_t)tile.x + row_of(half);
    bool exists = row_of(half) < tile.y;
#pragma unroll
    for (int from = 0; from < PIECES; from += AHEAD) {
      Read read[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD && from + i < PIECES; i++) {
        int column = n0 + first_column(from + i);
        if (exists && column < N) read[i] = epilogue.template read<8>(row, column);
      }
#pragma unroll
      for (int i = 0; i < AHEAD && from + i < PIECES; i++) {
        float v[8];
        gather_columns(v, d, half, from + i);
        int column = n0 + first_column(from + i);
        if (exists && column < N) epilogue.write(row, column, read[i], v);
      }
    }
  }
}

// H [T, N] = silu(X gate^T) * (X up^T); G and U are stored where not null. X [T, K]. Half of a product's columns are of
// gate and the others the same ones of up, so the SwiGLU happens in the registers of one thread.
template <int BN>
DEVICE void gate_up(unsigned char* shared, const TensorMap* x, const TensorMap* gate0, const TensorMap* up0,
                    const TensorMap* gate1, const TensorMap* up1, SwiGLU epilogue, const int4* tiles, int num_tiles,
                    int K, int N) {
  constexpr int COLUMNS = BN / 2;
  bool loads = threadIdx.x < 128;
  Pipeline<BN> pipe(shared, loads ? 1 : 0);
  pipe.init();
  int total = num_tiles * ((N + COLUMNS - 1) / COLUMNS);
  if (loads) {
    fewer_registers<40>();
    if (threadIdx.x == 0)
      produce(pipe, total, x, tiles, num_tiles, K, [&](unsigned char* place, uint64_t* barrier, int4 tile, int n, int k) {
        tma_load(place, tile.z ? gate1 : gate0, barrier, k, n * COLUMNS);
        tma_load(place + COLUMNS * BK * 2, tile.z ? up1 : up0, barrier, k, n * COLUMNS);
      });
  } else {
    more_registers<232>();
    consume<false>(pipe, total, K, [&](int t, const float (&d)[BN / 2]) {
      int4 tile = tiles[t % num_tiles];
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int piece = 0; piece < COLUMNS / 32; piece++) {
          float gate[8], up[8];
          gather_columns(gate, d, half, piece);
          gather_columns(up, d, half, piece + COLUMNS / 32);
          int column = t / num_tiles * COLUMNS + first_column(piece);
          if (row_of(half) < tile.y && column < N) epilogue.write((size_t)tile.x + row_of(half), column, gate, up);
        }
    });
  }
}
#define GATE_UP(columns)                                                                                              \
  KERNEL(THREADS, 1, gate_up_sm90_##columns)                                                                          \
  (BY_VALUE TensorMap x, BY_VALUE TensorMap gate0, BY_VALUE TensorMap up0, BY_VALUE TensorMap gate1,                   \
   BY_VALUE TensorMap up1, bf16* H, bf16* G, bf16* U, const int4* tiles, int num_tiles, int K, int N) {               \
    DYNAMIC_SHARED(shared);                                                                                           \
    gate_up<columns>(shared, &x, &gate0, &up0, &gate1, &up1, SwiGLU{H, G, U, N}, tiles, num_tiles, K, N);              \
  }                                                                                                                   \
  REGISTER_KERNEL(gate_up_sm90_##columns)
GATE_UP(128)
GATE_UP(192)
GATE_UP(256)

// Y [T, N] = X w^T (+ bias) (+ residual). X [T, K].
template <int BN>
DEVICE void project(unsigned char* shared, const TensorMap* x, const TensorMap* w0, const TensorMap* w1,
                    const bf16* bias0, const bf16* bias1, const bf16* residual, bf16* Y, const int4* tiles,
                    int num_tiles, int K, int N) {
  bool loads = threadIdx.x < 128;
  Pipeline<BN> pipe(shared, loads ? 1 : 0);
  pipe.init();
  int total = num_tiles * ((N + BN - 1) / BN);
  if (loads) {
    fewer_registers<40>();
    if (threadIdx.x == 0)
      produce(pipe, total, x, tiles, num_tiles, K, [&](unsigned char* place, uint64_t* barrier, int4 tile, int n, int k) {
        tma_load(place, tile.z ? w1 : w0, barrier, k, n * BN);
      });
  } else {
    more_registers<232>();
    consume<false>(pipe, total, K, [&](int t, const float (&d)[BN / 2]) {
      int4 tile = tiles[t % num_tiles];
      finish(d, tile, t / num_tiles * BN, N, Add{Y, tile.z ? bias1 : bias0, residual, N});
    });
  }
}
#define PROJECT(columns)                                                                                              \
  KERNEL(THREADS, 1, project_sm90_##columns)                                                                          \
  (BY_VALUE TensorMap x, BY_VALUE TensorMap w0, BY_VALUE TensorMap w1, const bf16* bias0, const bf16* bias1,           \
   const bf16* residual, bf16* Y, const int4* tiles, int num_tiles, int K, int N) {                                   \
    DYNAMIC_SHARED(shared);                                                                                           \
    project<columns>(shared, &x, &w0, &w1, bias0, bias1, residual, Y, tiles, num_tiles, K, N);                         \
  }                                                                                                                   \
  REGISTER_KERNEL(project_sm90_##columns)
PROJECT(64)
PROJECT(96)
PROJECT(128)
PROJECT(160)
PROJECT(192)
PROJECT(256)

// dY [T, K] through the down projection [K, N] and the SwiGLU: dG, dU, and H anew. B stays as it lies in memory, with N
// contiguous: boxes of 64 columns and 64 rows, and wgmma reads them column-major.
KERNEL(THREADS, 1, swiglu_backward_sm90)
(BY_VALUE TensorMap dy, BY_VALUE TensorMap down0, BY_VALUE TensorMap down1, const bf16* G, const bf16* U, bf16* dG,
 bf16* dU, bf16* H, const int4* tiles, int num_tiles, int K, int N) {
  DYNAMIC_SHARED(shared);
  constexpr int BN = 256;
  bool loads = threadIdx.x < 128;
  Pipeline<BN> pipe(shared, loads ? 1 : 0);
  pipe.init();
  int total = num_tiles * ((N + BN - 1) / BN);
  if (loads) {
    fewer_registers<40>();
    if (threadIdx.x == 0)
      produce(pipe, total, &dy, tiles, num_tiles, K, [&](unsigned char* place, uint64_t* barrier, int4 tile, int n, int k) {
        const TensorMap* down = tile.z ? &down1 : &down0;
#pragma unroll
        for (int i = 0; i < BN / 64; i++) tma_load(place + i * BOX, down, barrier, n * BN + i * 64, k);
      });
  } else {
    more_registers<232>();
    consume<true>(pipe, total, K, [&](int t, const float (&d)[BN / 2]) {
      finish(d, tiles[t % num_tiles], t / num_tiles * BN, N, SwiGLUBackward{G, U, dG, dU, H, N});
    });
  }
}
REGISTER_KERNEL(swiglu_backward_sm90)
