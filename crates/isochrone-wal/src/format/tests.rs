//! Whatever the bytes, decoding answers; whatever the values, it gives them back.

use proptest::prelude::*;

use super::*;

fn record() -> impl Strategy<Value = Record> {
    (0..4u8, any::<u64>(), any::<u64>(), 1..u64::MAX, prop::collection::vec(any::<u8>(), 0..300)).prop_map(
        |(kind, shard, term, index, payload)| {
            let shard = ShardId(shard);
            match kind {
                0 => Record { kind: Kind::Entry, shard, term, index, payload: payload.into() },
                1 => Record { kind: Kind::MovedEntry, shard, term, index, payload: payload.into() },
                2 => Record::hard_state(shard, crate::HardState { term, vote: index, commit: shard.0 }),
                _ => Record::mark(Kind::TruncatePrefix, shard, index, term),
            }
        },
    )
}

proptest! {
    #[test]
    fn garbage_never_panics(b in prop::collection::vec(any::<u8>(), 0..200), offset in 0..300u64) {
        let _ = SegmentHeader::decode(&b);
        let _ = batch_at(&b, 1, offset);
        let _ = next_magic(&b, offset);
        let _ = get_record(&b.into(), Position::default());
    }

    #[test]
    fn records_roundtrip_only_at_their_place(r in record(), generation: u64, offset: u64, other: u64) {
        let at = Position { generation, offset };
        let mut buf = Vec::new();
        put_record(&mut buf, &r, at);
        prop_assert_eq!(buf.len(), r.bytes());
        let buf = Bytes::from(buf);
        prop_assert_eq!(get_record(&buf, at), Ok(r));
        prop_assume!(other != offset && other != generation);
        for elsewhere in [Position { generation, offset: other }, Position { generation: other, offset }] {
            prop_assert!(get_record(&buf, elsewhere).is_err());
        }
    }

    #[test]
    fn segment_headers_roundtrip(generation: u64, bytes: u64, prev_end: u64, oldest: u64, epoch: u64) {
        let h = SegmentHeader { generation, bytes, prev_end, oldest, epoch };
        prop_assert_eq!(SegmentHeader::decode(&h.encode()), Ok(h));
    }

    #[test]
    fn batches_roundtrip_only_at_their_place(body in prop::collection::vec(any::<u8>(), 0..100), generation: u64) {
        let mut segment = vec![0; 256];
        let header = BatchHeader {
            body_bytes: body.len() as u32,
            records: 3,
            epoch: 7,
            durable_end: Position { generation: 2, offset: 9 },
            oldest: 1,
            generation,
        };
        let mut buf = vec![0; BATCH_HEADER_BYTES];
        buf.extend_from_slice(&body);
        seal_batch(&mut buf, &header, 64);
        segment[64..64 + buf.len()].copy_from_slice(&buf);
        prop_assert_eq!(batch_at(&segment, generation, 64), Ok(header));
        prop_assert_eq!(batch_at(&segment, generation, 0), Err(NoBatch::Blank));
        prop_assert!(batch_at(&segment, generation ^ 1, 64).is_err());
        prop_assert_eq!(next_magic(&segment, 0), Some(64));
        let moved: Vec<u8> = segment[64..].to_vec();
        prop_assert!(batch_at(&moved, generation, 0).is_err());
    }
}

#[test]
fn names() {
    let dir = Path::new("/d");
    assert_eq!(parse_name(&path_of(dir, 0x2a)), Some(Name::Segment(0x2a)));
    assert_eq!(parse_name(&dir.join(spare_name(7))), Some(Name::Spare(7)));
    assert_eq!(parse_name(&dir.join(NEW_NAME)), Some(Name::New));
    for other in [
        "wal-2a.seg",
        "wal-000000000000002A.seg",
        "wal-0000000000000000.seg",
        "wal-ffffffffffffffff.seg",
        "x",
        "wal-+00000000000002a.seg",
    ] {
        assert_eq!(parse_name(&dir.join(other)), None, "{other}");
    }
}
