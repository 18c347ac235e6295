// The sm_90a half of the emulator: mbarrier, TMA with the real 128-byte swizzle, wgmma on the real descriptors.
#pragma once

struct alignas(64) TensorMap {  // in place of CUtensorMap, as large
  const void* base;
  uint64_t columns, rows, row_bytes;
  uint32_t box_columns, box_rows;
  uint64_t unused[11];
};
static_assert(sizeof(TensorMap) == 128, "as CUtensorMap");

static inline emulator::Barrier& find_barrier(void* place) {
  auto found = emulator::block->barriers.find(place);
  if (found == emulator::block->barriers.end()) emulator::fail("an mbarrier is used before its init");
  return found->second;
}
static inline void end_phase_if_complete(emulator::Barrier& barrier) {
  if (barrier.pending < 0) emulator::fail("more arrivals at an mbarrier than its count");
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.pending = barrier.count;
    barrier.generation = barrier.generation + 1;
  }
}
static inline void barrier_init(uint64_t* place, int arrivals) {
  auto& barrier = emulator::block->barriers[place];
  barrier.count = barrier.pending = arrivals;
  barrier.bytes = 0;
}
static inline void barrier_init_fence() {}
static inline void barrier_arrive(uint64_t* place) {
  auto& barrier = find_barrier(place);
  barrier.pending--;
  end_phase_if_complete(barrier);
}
static inline void barrier_expect(uint64_t* place, int bytes) {
  auto& barrier = find_barrier(place);
  barrier.bytes += bytes;
  barrier.pending--;
  end_phase_if_complete(barrier);
}
static inline void barrier_wait(uint64_t* place, int parity) {
  auto& barrier = find_barrier(place);
  while ((barrier.generation & 1) == (unsigned)parity) emulator::wait_while(&barrier.generation, barrier.generation);
}

static inline uint64_t swizzled(uint64_t address) { return address ^ (address >> 3 & 0x70); }

static inline void tma_load(void* to, const TensorMap* map, uint64_t* place, int column, int row) {
  TensorMap m = *map;
  if ((uintptr_t)to & 1023) emulator::fail("a TMA box with the 128-byte swizzle is not aligned to 1024 bytes");
  if (m.box_columns * 2 != 128) emulator::fail("the inner side of an emulated TMA box must be 128 bytes");
  emulator::Barrier* barrier = &find_barrier(place);
  unsigned char* base = emulator::block->shared;
  if ((unsigned char*)to + m.box_rows * 128 > base + emulator::block->shared_size)
    emulator::fail("a TMA box ends outside of shared memory");
  auto land = [=] {
    for (uint32_t r = 0; r < m.box_rows; r++)
      for (uint32_t c = 0; c < 128; c += 16) {
        unsigned char* p = base + swizzled((unsigned char*)to - base + r * 128 + c);
        long y = (long)row + r, x = column + c / 2;
        for (int e = 0; e < 8; e++) {
          uint16_t v = 0;
          if (y >= 0 && y < (long)m.rows && x + e >= 0 && x + e < (long)m.columns)
            v = ((const uint16_t*)((const char*)m.base + y * m.row_bytes))[x + e];
          memcpy(p + e * 2, &v, 2);
        }
      }
    barrier->bytes -= (long)m.box_rows * 128;
    end_phase_if_complete(*barrier);
  };
  if (emulator::late_copies) emulator::block->in_flight.push_back(land);
  else land();
}

static inline uint64_t descriptor(const void* p, int leading_bytes, int stride_bytes) {
  uint64_t offset = (unsigned char*)p - emulator::block->shared;
  return offset >> 4 | (uint64_t)(leading_bytes >> 4) << 16 | (uint64_t)(stride_bytes >> 4) << 32 | (uint64_t)1 << 62;
}
// An operand of `count` rows (of A) or columns (of B), 16 deep: out[k * count + i].
//   K-major: (i, k) at (i / 8) stride + (i % 8) 128 + 2 k
//   the other way: at (k / 8) stride + (k % 8) 128 + (i / 64) leading + 2 (i % 64)
static inline void read_operand(uint64_t descriptor, int first, int count, bool k_major, float* out) {
  uint64_t start = (descriptor & 0x3fff) << 4;
  uint64_t leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1) emulator::fail("emulated wgmma knows the 128-byte swizzle only");
  for (int k = 0; k < 16; k++)
    for (int n = 0; n < count; n++) {
      uint64_t i = first + n;
      uint64_t at = k_major ? i / 8 * stride + i % 8 * 128 + k * 2
                            : (uint64_t)(k / 8) * stride + k % 8 * 128 + i / 64 * leading + i % 64 * 2;
      at = swizzled(start + at);
      if (at + 2 > emulator::block->shared_size) emulator::fail("wgmma reads outside of shared memory");
      uint32_t bits = (uint32_t) * (const uint16_t*)(emulator::block->shared + at) << 16;
      memcpy(out + (size_t)k * count + n, &bits, 4);
    }
}
static inline void run_wgmma(const emulator::WgmmaOp& op, int warp) {
  static thread_local float A[16 * 16], B[16 * 256], C[16 * 256];
  int n = op.columns;
  read_operand(op.a, warp * 16, 16, true, A);
  read_operand(op.b, 0, n, !op.column_major_b, B);
  auto at = [n](int lane, int j, int r) { return (lane / 4 + (r >> 1) * 8) * n + j * 8 + (lane & 3) * 2 + (r & 1); };
  for (int l = 0; l < 32; l++)
    for (int j = 0; j < n / 8; j++)
      for (int r = 0; r < 4; r++) C[at(l, j, r)] = op.accumulate ? op.d[l][j * 4 + r] : 0.f;
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 16; k++) {
      float v = A[k * 16 + i];
      float* c = C + i * n;
      const float* b = B + k * n;
      for (int j = 0; j < n; j++) c[j] += v * b[j];
    }
  for (int l = 0; l < 32; l++)
    for (int j = 0; j < n / 8; j++)
      for (int r = 0; r < 4; r++) op.d[l][j * 4 + r] = C[at(l, j, r)];
}
static inline int warp_of_group() { return (int)(emulator::fiber->thread.x / 32 & 3); }
static inline void wgmma_fence() {}
static inline void wgmma_commit() {
  emulator::collective(5, [](emulator::Warp& warp) {
    warp.committed.push_back(std::move(warp.open));
    warp.open.clear();
  });
}
template <int N> static inline void wgmma_wait() {
  int number = warp_of_group();
  emulator::collective(6, [=](emulator::Warp& warp) {
    while ((int)warp.committed.size() > N) {
      for (auto& op : warp.committed.front()) run_wgmma(op, number);
      warp.committed.erase(warp.committed.begin());
    }
  });
}
template <int N> static inline void more_registers() {}
template <int N> static inline void fewer_registers() {}
template <bool kColumnMajorB, int kRegisters>
static inline void wgmma(float (&d)[kRegisters], uint64_t a, uint64_t b, bool accumulate) {
  int number = warp_of_group();
  uint64_t* in = emulator::fiber->warp->in[emulator::fiber->lane];
  in[0] = (uint64_t)&d[0], in[1] = a, in[2] = b, in[3] = accumulate;
  emulator::collective(7, [=](emulator::Warp& warp) {
    if (warp.count != 32) emulator::fail("wgmma with a partial warp");
    emulator::WgmmaOp op{warp.in[0][1], warp.in[0][2], warp.in[0][3] != 0, kColumnMajorB, kRegisters * 2, {}};
    for (int l = 0; l < 32; l++) {
      if (warp.in[l][1] != op.a || warp.in[l][2] != op.b) emulator::fail("descriptors of wgmma differ within a warp");
      op.d[l] = (float*)warp.in[l][0];
    }
    if (emulator::late_products) warp.open.push_back(op);
    else run_wgmma(op, number);
  });
}
