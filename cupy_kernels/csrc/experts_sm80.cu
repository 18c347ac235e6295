// Products of a batch whose rows belong to two experts, for sm_80 and newer: mma.sync over a cp.async pipeline.
//
// tiles[m] = {first row, rows (1..128), expert, 0}: block (m, n) computes the rows of tile m and 128 columns with that
// expert's weights. Rows past the tile's end are loaded as zeros and not stored; so are columns and depth past the end
// of a matrix. Only multiples of 8 are asked of widths and depths, so that every row starts at 16 bytes.
//
// K depth of the product, N columns of the result.
#include "epilogues.cuh"

constexpr int BM = 128, BN = 128, BK = 32, STAGES = 4, THREADS = 256;
constexpr int ROW = BK + 8;                    // padded rows of a K-contiguous tile: ldmatrix without bank conflicts
constexpr int ROW_OF_N = BN + 8;               // of an N-contiguous tile
constexpr int A_SIZE = BM * ROW, STAGE = A_SIZE + BN * ROW;
static_assert(BK * ROW_OF_N <= BN * ROW, "both layouts of B fit its place");

// Weights [N, K]: B's rows are columns of the result.
struct Rows {
  const bf16* w;
  int n0, N, K;
  DEVICE void load(bf16* tile, int k0, int thread) const {
    for (int c = thread; c < BN * (BK / 8); c += THREADS) {
      int row = c / (BK / 8), k = k0 + c % (BK / 8) * 8;
      bool valid = n0 + row < N && k < K;
      copy_async(tile + row * ROW + k - k0, w + (valid ? (size_t)(n0 + row) * K + k : 0), valid);
    }
  }
  // Fragments of 16 columns: pair p of the warp's two, depth kk.
  DEVICE static void fragment(uint32_t (&b)[4], const bf16* tile, int kk, int warp_n, int p, int lane) {
    load_matrices(b, tile + (warp_n * 32 + p * 16 + (lane & 7) + (lane >> 4) * 8) * ROW + kk + (lane >> 3 & 1) * 8);
  }
};

// Gate and up, both [N, K]: 64 columns of each side by side, so that one thread holds gate and up of the same place.
struct PairedRows {
  const bf16 *gate, *up;
  int n0, N, K;
  DEVICE void load(bf16* tile, int k0, int thread) const {
    for (int c = thread; c < BN * (BK / 8); c += THREADS) {
      int row = c / (BK / 8), k = k0 + c % (BK / 8) * 8, n = n0 + row % 64;
      bool valid = n < N && k < K;
      copy_async(tile + row * ROW + k - k0, (row < 64 ? gate : up) + (valid ? (size_t)n * K + k : 0), valid);
    }
  }
  DEVICE static void fragment(uint32_t (&b)[4], const bf16* tile, int kk, int warp_n, int p, int lane) {
    load_matrices(b, tile + (p * 64 + warp_n * 16 + (lane & 7) + (lane >> 4) * 8) * ROW + kk + (lane >> 3 & 1) * 8);
  }
};

// Weights [K, N]: the product with a matrix that is not transposed, as a backward has it.
struct Columns {
  const bf16* w;
  int n0, N, K;
  DEVICE void load(bf16* tile, int k0, int thread) const {
    for (int c = thread; c < BK * (BN / 8); c += THREADS) {
      int k = k0 + c / (BN / 8), n = c % (BN / 8) * 8;
      bool valid = k < K && n0 + n < N;
      copy_async(tile + (k - k0) * ROW_OF_N + n, w + (valid ? (size_t)k * N + n0 + n : 0), valid);
    }
  }
  DEVICE static void fragment(uint32_t (&b)[4], const bf16* tile, int kk, int warp_n, int p, int lane) {
    int k = kk + (lane & 7) + (lane >> 3 & 1) * 8, n = warp_n * 32 + p * 16 + (lane >> 4) * 8;
    load_matrices_transposed(b, tile + k * ROW_OF_N + n);
  }
};

typedef float Accumulator[4][4][4];  // blocks of 16 rows, blocks of 8 columns, fragment

// Eight warps, two by four: each 64 rows and 32 columns.
template <class B>
DEVICE void multiply(Accumulator& d, bf16* shared, const bf16* a, int rows, const B& b, int K) {
  int thread = threadIdx.x, lane = thread & 31, warp_m = thread >> 7, warp_n = thread >> 5 & 3;
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++)
      for (int r = 0; r < 4; r++) d[i][j][r] = 0.f;

  int steps = (K + BK - 1) / BK;
  auto load = [&](int step) {
    bf16* stage = shared + step % STAGES * STAGE;
    for (int c = thread; c < BM * (BK / 8); c += THREADS) {
      int row = c / (BK / 8), k = step * BK + c % (BK / 8) * 8;
      bool valid = row < rows && k < K;
      copy_async(stage + row * ROW + k - step * BK, a + (valid ? (size_t)row * K + k : 0), valid);
    }
    b.load(stage + A_SIZE, step * BK, thread);
  };
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) load(step);
    copy_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    copy_async_wait<STAGES - 2>();
    __syncthreads();  // this stage has landed for all, and all are done with the one before
    if (step + STAGES - 1 < steps) load(step + STAGES - 1);
    copy_async_commit();
    const bf16* stage = shared + step % STAGES * STAGE;
#pragma unroll
    for (int kk = 0; kk < BK; kk += 16) {
      uint32_t fa[4][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        load_matrices(fa[i], stage + (warp_m * 64 + i * 16 + (lane & 15)) * ROW + kk + (lane >> 4) * 8);
#pragma unroll
      for (int p = 0; p < 2; p++) B::fragment(fb[p], stage + A_SIZE, kk, warp_n, p, lane);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mma_m16n8k16(d[i][j], fa[i], fb[j >> 1][(j & 1) * 2], fb[j >> 1][(j & 1) * 2 + 1]);
    }
  }
}

// Hands over pairs of results of the warp's 64 x 32.
template <class Epilogue>
DEVICE void finish(const Accumulator& d, int4 tile, int n0, int N, const Epilogue& epilogue) {
  int lane = threadIdx.x & 31, warp_m = threadIdx.x >> 7, warp_n = threadIdx.x >> 5 & 3;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = warp_m * 64 + i * 16 + (lane >> 2) + half * 8;
      if (row >= tile.y) continue;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int column = n0 + warp_n * 32 + j * 8 + (lane & 3) * 2;
        if (column >= N) continue;
        float v[2] = {d[i][j][half * 2], d[i][j][half * 2 + 1]};
        epilogue.write((size_t)tile.x + row, column, epilogue.template read<2>((size_t)tile.x + row, column), v);
      }
    }
}

// H [T, N] = silu(X gate^T) * (X up^T); G and U, the two products, are stored where not null. X [T, K].
KERNEL(THREADS, 2, gate_up_sm80)
(const bf16* X, const bf16* gate0, const bf16* up0, const bf16* gate1, const bf16* up1, bf16* H, bf16* G, bf16* U,
 const int4* tiles, int K, int N) {
  DYNAMIC_SHARED(shared);
  int4 tile = tiles[blockIdx.x];
  int n0 = blockIdx.y * (BN / 2);
  PairedRows b{tile.z ? gate1 : gate0, tile.z ? up1 : up0, n0, N, K};
  Accumulator d;
  multiply(d, (bf16*)shared, X + (size_t)tile.x * K, tile.y, b, K);

  SwiGLU epilogue{H, G, U, N};
  int lane = threadIdx.x & 31, warp_m = threadIdx.x >> 7, warp_n = threadIdx.x >> 5 & 3;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = warp_m * 64 + i * 16 + (lane >> 2) + half * 8;
      if (row >= tile.y) continue;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        int column = n0 + warp_n * 16 + j * 8 + (lane & 3) * 2, r = half * 2;
        float gate[2] = {d[i][j][r], d[i][j][r + 1]}, up[2] = {d[i][j + 2][r], d[i][j + 2][r + 1]};
        if (column < N) epilogue.write((size_t)tile.x + row, column, gate, up);
      }
    }
}
REGISTER_KERNEL(gate_up_sm80)

// Y [T, N] = X w^T (+ bias) (+ residual). X [T, K].
KERNEL(THREADS, 2, project_sm80)
(const bf16* X, const bf16* w0, const bf16* w1, const bf16* bias0, const bf16* bias1, const bf16* residual, bf16* Y,
 const int4* tiles, int K, int N) {
  DYNAMIC_SHARED(shared);
  int4 tile = tiles[blockIdx.x];
  int n0 = blockIdx.y * BN;
  Accumulator d;
  multiply(d, (bf16*)shared, X + (size_t)tile.x * K, tile.y, Rows{tile.z ? w1 : w0, n0, N, K}, K);
  finish(d, tile, n0, N, Add{Y, tile.z ? bias1 : bias0, residual, N});
}
REGISTER_KERNEL(project_sm80)

// The gradient dY [T, K] of the FFN's output, through the down projection [K, N] and the SwiGLU: dG, dU, and H anew.
KERNEL(THREADS, 2, swiglu_backward_sm80)
(const bf16* dY, const bf16* down0, const bf16* down1, const bf16* G, const bf16* U, bf16* dG, bf16* dU, bf16* H,
 const int4* tiles, int K, int N) {
  DYNAMIC_SHARED(shared);
  int4 tile = tiles[blockIdx.x];
  int n0 = blockIdx.y * BN;
  Accumulator d;
  multiply(d, (bf16*)shared, dY + (size_t)tile.x * K, tile.y, Columns{tile.z ? down1 : down0, n0, N, K}, K);
  finish(d, tile, n0, N, SwiGLUBackward{G, U, dG, dU, H, N});
}
REGISTER_KERNEL(swiglu_backward_sm80)
