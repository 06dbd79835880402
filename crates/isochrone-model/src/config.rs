//! What a search explores: shards, keys, one or two transactions, and which faults may happen how often.

use isochrone_shard::api::Mode;

use crate::state::{IN_FLIGHT_MAX, INITIAL, KEYS_MAX, Keys, PIECES_MAX, SHARDS_MAX, TS_MAX, TXNS_MAX, Ts};

/// The first key.
pub const X: Keys = Keys(1);
/// The second.
pub const Y: Keys = Keys(2);
/// The third.
pub const Z: Keys = Keys(4);
/// The fourth.
pub const W: Keys = Keys(8);

/// One piece of a transaction.
#[derive(Clone, Debug)]
pub struct PieceSpec {
    /// Where it lives.
    pub shard: usize,
    /// Its part of W.
    pub writes: Keys,
    /// The part of V that lies on its shard.
    pub validate: Keys,
}

/// A transaction attempt as its coordinator plans it (R9.1).
#[derive(Clone, Debug)]
pub struct TxnSpec {
    /// C.
    pub candidate: Ts,
    /// Its snapshot: `seen` of every key that it read. Above [`INITIAL`], reading is a step of its own.
    pub read_ts: Ts,
    /// See `isochrone_shard::api::Mode`.
    pub mode: Mode,
    /// W and the V beside it, cut by shard.
    pub pieces: Vec<PieceSpec>,
    /// The piece that decides.
    pub anchor: usize,
    /// V on shards that hold no piece.
    pub elsewhere: Keys,
    /// R13: one piece, committed in one step.
    pub one_step: bool,
    /// It is another attempt of that transaction, begun when that one's client heard ABORT (R22).
    pub retry_of: Option<usize>,
    /// R11.6.
    pub max_ts: Ts,
    known: Keys,
}

impl TxnSpec {
    /// All of V.
    pub fn validated(&self) -> Keys {
        self.pieces.iter().fold(self.elsewhere, |v, p| v.and(p.validate))
    }

    /// W.
    pub fn writes(&self) -> Keys {
        self.pieces.iter().fold(Keys::NONE, |w, p| w.and(p.writes))
    }

    /// The written keys that have a `seen`.
    pub fn known(&self) -> Keys {
        self.known
    }
}

/// What a transaction reads and writes; [`Config::txn`] plans it.
#[derive(Clone, Debug)]
pub struct Txn {
    candidate: Ts,
    read_ts: Ts,
    writes: Keys,
    known: Keys,
    validate: Keys,
    anchor: usize,
    read_pieces: bool,
    retry_of: Option<usize>,
    max_ts: Ts,
}

impl Txn {
    /// A transaction whose candidate timestamp is C.
    pub fn at(candidate: Ts) -> Txn {
        Txn {
            candidate,
            read_ts: INITIAL,
            writes: Keys::NONE,
            known: Keys::NONE,
            validate: Keys::NONE,
            anchor: 0,
            read_pieces: false,
            retry_of: None,
            max_ts: TS_MAX,
        }
    }

    /// Writes these without having read them.
    pub fn writes(mut self, keys: Keys) -> Txn {
        self.writes = self.writes.and(keys);
        self
    }

    /// Reads and writes these.
    pub fn updates(mut self, keys: Keys) -> Txn {
        self.known = self.known.and(keys);
        self.writes(keys)
    }

    /// Read at SERIALIZABLE, or locked: they must not have changed.
    pub fn validates(mut self, keys: Keys) -> Txn {
        self.validate = self.validate.and(keys);
        self
    }

    /// Reads at this snapshot.
    pub fn reads_at(mut self, ts: Ts) -> Txn {
        self.read_ts = ts;
        self
    }

    /// This piece decides.
    pub fn anchor(mut self, piece: usize) -> Txn {
        self.anchor = piece;
        self
    }

    /// A shard that is only read becomes a piece that writes nothing (section 11, "Allowed variant").
    pub fn read_pieces(mut self) -> Txn {
        self.read_pieces = true;
        self
    }

    /// See [`TxnSpec::retry_of`].
    pub fn retry_of(mut self, txn: usize) -> Txn {
        self.retry_of = Some(txn);
        self
    }

    /// Its commit timestamp is at most this.
    pub fn max_ts(mut self, ts: Ts) -> Txn {
        self.max_ts = ts;
        self
    }
}

/// The bounds of one search.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name on the command line.
    pub name: String,
    /// What it is there for.
    pub about: &'static str,
    /// The shard of each key.
    pub shard_of: Vec<usize>,
    /// The transactions. The deadline of each is its number + 1: floors pass them in order.
    pub txns: Vec<TxnSpec>,
    /// Snapshot reads of others, each any number of times: key and timestamp.
    pub reads: Vec<(usize, Ts)>,
    /// The same on a follower (R6).
    pub follower_reads: Vec<(usize, Ts)>,
    /// Closed timestamps that every shard may reach.
    pub closes: Vec<Ts>,
    /// Lease changes, over all shards.
    pub leases: u8,
    /// Floors rise, each shard's by itself (R20).
    pub floors: bool,
    /// 0: evaluation and application are one step. Else: two, with at most so many proposals in flight.
    pub in_flight: usize,
    /// Shards refuse prepares without a reason that the model knows (a schema version, for example), finally.
    pub refusals: bool,
    /// Refusals may also leave no record (R12).
    pub unrecorded: bool,
    /// After a lease change, the predecessor serves the reads on, up to the read limit that it knows: a bad clock (R1).
    pub stale_reads: bool,
    /// The first two shards merge at some moment.
    pub merge: bool,
    /// Recoverers know at once what asking would tell them: probes of what is prepared, and that an anchor is gone. Facts
    /// only ever allow steps, never forbid one; so every violation that there is stays, with a shorter trace, and there are
    /// fewer states. For larger bounds.
    pub eager: bool,
}

impl Config {
    /// No transactions and no faults yet; `shard_of` places the keys.
    pub fn new(name: &str, about: &'static str, shard_of: &[usize]) -> Config {
        assert!(shard_of.len() <= KEYS_MAX && shard_of.iter().all(|s| *s < SHARDS_MAX));
        Config {
            name: name.to_string(),
            about,
            shard_of: shard_of.to_vec(),
            txns: Vec::new(),
            reads: Vec::new(),
            follower_reads: Vec::new(),
            closes: Vec::new(),
            leases: 0,
            floors: false,
            in_flight: 0,
            refusals: false,
            unrecorded: false,
            stale_reads: false,
            merge: false,
            eager: false,
        }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shard_of.iter().max().map_or(0, |s| s + 1)
    }

    /// R9.1, as `isochrone_txn` plans: pieces by shard in key order, each with its shard's part of V; at-max if V lies in
    /// W; one piece is committed in one step.
    pub fn txn(mut self, txn: Txn) -> Config {
        assert!(self.txns.len() < TXNS_MAX && txn.candidate > txn.read_ts);
        let on = |keys: Keys, shard: usize| {
            Keys(keys.iter().filter(|k| self.shard_of[*k] == shard).fold(0, |s, k| s | 1 << k))
        };
        let mut pieces = Vec::new();
        let mut elsewhere = Keys::NONE;
        for shard in 0..self.shards() {
            let (writes, validate) = (on(txn.writes, shard), on(txn.validate, shard));
            if writes != Keys::NONE || txn.read_pieces && validate != Keys::NONE {
                pieces.push(PieceSpec { shard, writes, validate });
            } else {
                elsewhere = elsewhere.and(validate);
            }
        }
        assert!(pieces.len() <= PIECES_MAX && txn.anchor < pieces.len());
        let at_max = txn.validate.but(txn.writes) == Keys::NONE;
        self.txns.push(TxnSpec {
            candidate: txn.candidate,
            read_ts: txn.read_ts,
            mode: if at_max { Mode::AtMax } else { Mode::AtCandidate },
            one_step: pieces.len() == 1,
            pieces,
            anchor: txn.anchor,
            elsewhere,
            retry_of: txn.retry_of,
            max_ts: txn.max_ts,
            known: txn.known,
        });
        self
    }

    /// Others read these keys at this timestamp.
    pub fn read(mut self, keys: Keys, ts: Ts) -> Config {
        self.reads.extend(keys.iter().map(|k| (k, ts)));
        self
    }

    /// Others read these keys at this timestamp on followers.
    pub fn follower_read(mut self, keys: Keys, ts: Ts) -> Config {
        self.follower_reads.extend(keys.iter().map(|k| (k, ts)));
        self
    }

    /// Closed timestamps.
    pub fn closes(mut self, ts: &[Ts]) -> Config {
        self.closes.extend(ts);
        self
    }

    /// So many lease changes.
    pub fn leases(mut self, n: u8) -> Config {
        self.leases = n;
        self
    }

    /// Floors rise.
    pub fn floors(mut self) -> Config {
        self.floors = true;
        self
    }

    /// Evaluation and application are two steps.
    pub fn in_flight(mut self, n: usize) -> Config {
        assert!(n <= IN_FLIGHT_MAX);
        self.in_flight = n;
        self
    }

    /// Refusals without a reason.
    pub fn refusals(mut self) -> Config {
        self.refusals = true;
        self
    }

    /// Refusals without a record.
    pub fn unrecorded(mut self) -> Config {
        self.unrecorded = true;
        self
    }

    /// A predecessor serves on.
    pub fn stale_reads(mut self) -> Config {
        self.stale_reads = true;
        self
    }

    /// The first two shards merge.
    pub fn merge(mut self) -> Config {
        assert!(self.shards() >= 2);
        self.merge = true;
        self
    }

    /// See [`Config::eager`].
    pub fn eager(mut self) -> Config {
        self.eager = true;
        self
    }

    /// Under another name.
    pub fn named(mut self, name: &str, about: &'static str) -> Config {
        (self.name, self.about) = (name.to_string(), about);
        self
    }
}
