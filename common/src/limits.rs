//! Every constant limit, with its reason. Limits that a user may set are defaults here.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Events per batch read: 256 at once cost 1,119 ns an event against 1,710 one by one; more brings nothing.
pub const READ_BATCH_EVENTS: usize = 256;

/// A block of deliveries is cut here, far below the 2 GiB that its 32-bit offsets could address.
pub const BLOCK_BYTES_MAX: usize = 512 * MIB;

/// Raw bytes of a group that are encoded at once: enough rows to sort by lane, small enough to leave memory soon.
pub const CHUNK_BYTES: usize = 8 * MIB;

/// Raw bytes of a row group where memory allows: 128 MiB gains nothing in size, 16 MiB costs 0.4 %.
pub const ROW_GROUP_BYTES: usize = 64 * MIB;

/// Bytes of a multipart part: large enough that requests do not count, small enough that four in flight fit any budget.
pub const PART_BYTES: usize = 8 * MIB;

/// Parts of one segment in flight.
pub const PARTS_IN_FLIGHT: usize = 4;

/// Windows open in one batch; past it the least recently used segment is finished and its room reused.
pub const OPEN_SEGMENTS_MAX: usize = 64;

/// Topics and hours in one batch: each becomes a segment and a kilobyte of the record, however few events it has.
pub const BATCH_GROUPS_MAX: usize = 1_000;

/// Columns larger than this go back to the system instead of into the pool.
pub const POOLED_COLUMNS_BYTES_MAX: usize = 4 * MIB;

/// The librdkafka queue of a consumer, in KiB: small, so that what it hands over is still in the CPU's cache.
pub const FETCH_QUEUE_KIB: usize = 4096;

/// Default of `seal.max_bytes`: encoded bytes of a batch.
pub const SEAL_BYTES_DEFAULT: u64 = 128 * MIB as u64;

/// Default of `seal.max_age`.
pub const SEAL_AGE_DEFAULT: Duration = Duration::from_secs(300);

/// Default of `memory.budget`.
pub const MEMORY_BUDGET_DEFAULT: u64 = 512 * MIB as u64;

/// The smallest `memory.budget` in which one batch read and one open segment fit.
pub const MEMORY_BUDGET_MIN: u64 = 32 * MIB as u64;

/// An event of this share of the memory budget is over-size: it goes into a segment of its own. Smaller ones fit beside each other.
pub const OVERSIZE_SHARE: usize = 8;

/// The room of an over-size event, in times of its size: while it is packed there are the event, its page, and the packed page
/// twice, in the packer's buffer and on its way into the object.
pub const OVERSIZE_ROOM: usize = 4;

/// Default of `shutdown.grace`; Kubernetes kills after 30 s.
pub const SHUTDOWN_GRACE_DEFAULT: Duration = Duration::from_secs(25);

/// How long a rebalance waits for the batches of revoked lanes. Past it they are abandoned, which is safe.
pub const REVOKE_GRACE: Duration = Duration::from_secs(10);

/// An outcome is trusted without reading the log's tip again for this long.
pub const TIP_TRUSTED_FOR: Duration = Duration::from_secs(600);

/// A checkpoint is written each time the log's version passes a multiple of this.
pub const CHECKPOINT_EVERY: u64 = 100;

/// Segments of a checkpoint's row group: small enough that a plan for one hour reads little, large enough to compress.
pub const CHECKPOINT_GROUP_ROWS: usize = 10_000;

/// Changed segments that are held while a checkpoint is made, outside the budget, at about half a kilobyte each. There are
/// more only where no checkpoint was written for long.
pub const CHECKPOINT_CHANGES_MAX: usize = 50_000;

/// Default of `maintain.memory`: a row group of 8 MiB as rows and encoded, one of an input, and two parts on their way.
pub const MAINTAIN_MEMORY_DEFAULT: u64 = 64 * MIB as u64;

/// The smallest `maintain.memory` in which an input's row group of usual size and a part fit.
pub const MAINTAIN_MEMORY_MIN: u64 = 32 * MIB as u64;

/// Default of `maintain.rate`, in bytes a second to and from the store: a tenth of a usual link, and 200 GiB a day compacted.
pub const MAINTAIN_RATE_DEFAULT: u64 = 16 * MIB as u64;
