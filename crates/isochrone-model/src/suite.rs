//! The configurations: small ones, which CI searches completely, and larger ones for the command.

use crate::config::{Config, Txn, W, X, Y, Z};

/// Pairs of transactions in each other's way, without faults.
fn pairs() -> Vec<Config> {
    let two = |name, about| Config::new(name, about, &[0, 1]);
    let three = |name, about| Config::new(name, about, &[0, 1, 2]);
    let xy = X.and(Y);
    vec![
        two("write-write", "both write both keys").txn(Txn::at(3).writes(xy)).txn(Txn::at(4).writes(xy)),
        two("anchors", "both write both keys, with different anchors")
            .txn(Txn::at(4).writes(xy))
            .txn(Txn::at(3).writes(xy).anchor(1)),
        two("updates", "both read and write both keys")
            .txn(Txn::at(3).updates(xy))
            .txn(Txn::at(4).updates(xy)),
        two("reads-later", "the second reads later, where the first writes")
            .txn(Txn::at(3).updates(xy))
            .txn(Txn::at(6).reads_at(4).updates(xy)),
        three("skew-shared", "write skew over shards that are written as well")
            .txn(Txn::at(3).writes(xy).validates(Z))
            .txn(Txn::at(4).writes(Y.and(Z)).validates(X)),
        Config::new("skew-beside", "write skew over keys beside the written ones", &[0, 1, 0, 1])
            .txn(Txn::at(3).writes(xy).validates(Z.and(W)))
            .txn(Txn::at(4).writes(Z.and(W)).validates(xy)),
        three("skew-one-step", "write skew of commits in one step")
            .txn(Txn::at(3).writes(X).validates(Z))
            .txn(Txn::at(4).writes(Z).validates(X)),
        three("locked-only", "a locked row that another updates")
            .txn(Txn::at(3).writes(xy).validates(Z))
            .txn(Txn::at(4).updates(Z)),
        two("locked-and-written", "a locked row is written without having been read")
            .txn(Txn::at(3).writes(xy).validates(X))
            .txn(Txn::at(4).writes(X)),
        two("one-against-two", "a commit in one step against two pieces")
            .txn(Txn::at(3).updates(xy))
            .txn(Txn::at(4).updates(X)),
        three("mixed-levels", "SERIALIZABLE against snapshot isolation")
            .txn(Txn::at(3).updates(xy).validates(Z))
            .txn(Txn::at(4).updates(Z).writes(X)),
        two("retry", "another attempt after a known abort")
            .txn(Txn::at(3).updates(xy))
            .txn(Txn::at(5).reads_at(4).updates(xy).retry_of(0)),
        three("read-piece", "a shard that is only read is a piece (section 11, allowed variant)")
            .txn(Txn::at(3).writes(xy).validates(Z).read_pieces())
            .txn(Txn::at(4).writes(Z)),
        two("max-ts", "pushed above the highest timestamp allowed")
            .txn(Txn::at(3).writes(xy).max_ts(4))
            .txn(Txn::at(4).writes(X)),
    ]
}

/// One of [`pairs`].
fn pair(name: &str) -> Config {
    pairs().into_iter().find(|c| c.name == name).expect("the name of a pair")
}

/// What CI searches, all of it to the end; one CPU half a minute.
pub fn small() -> Vec<Config> {
    let xy = X.and(Y);
    let blind = |name, about| Config::new(name, about, &[0, 1]).txn(Txn::at(3).writes(xy));
    let mut all = vec![
        blind("blind", "two pieces pushed by reads; leases, floors, refusals of both kinds")
            .read(xy, 4)
            .floors()
            .leases(1)
            .refusals()
            .unrecorded(),
        blind("blind+in-flight", "two pieces with proposals in flight")
            .read(Y, 4)
            .floors()
            .leases(1)
            .in_flight(2),
        blind("blind+closed", "two pieces against closed timestamps and reads of leaders and followers")
            .closes(&[3, 4])
            .read(X, 4)
            .follower_read(X, 3)
            .follower_read(Y, 4)
            .floors(),
        Config::new("blind+stale", "two pieces; a leaseholder that was replaced serves reads on", &[0, 1, 0])
            .txn(Txn::at(3).writes(xy))
            .read(X.and(Z), 4)
            .leases(1)
            .stale_reads()
            .in_flight(2)
            .floors(),
        blind("blind+merge", "two pieces whose shards merge")
            .closes(&[4])
            .read(Y, 4)
            .follower_read(X, 4)
            .floors()
            .merge(),
        Config::new("blind-3", "three pieces, the anchor in the middle", &[0, 1, 2])
            .txn(Txn::at(3).writes(xy.and(Z)).anchor(1))
            .floors(),
        Config::new("locked", "two pieces, a locked row on a third shard; pushed", &[0, 1, 2])
            .txn(Txn::at(3).writes(xy).validates(Z))
            .read(xy, 4)
            .floors(),
        Config::new("beside", "two pieces, V beside what they write; pushed", &[0, 1, 0, 1])
            .txn(Txn::at(3).writes(xy).validates(Z.and(W)))
            .read(X, 4)
            .floors()
            .leases(1),
        Config::new("one", "a commit in one step with proposals in flight", &[0, 1])
            .txn(Txn::at(3).writes(X).validates(Y))
            .read(xy, 4)
            .floors()
            .leases(2)
            .refusals()
            .in_flight(2),
        Config::new("one+closed", "a commit in one step against closed timestamps", &[0])
            .txn(Txn::at(3).writes(X))
            .closes(&[3, 4])
            .read(X, 5)
            .follower_read(X, 4)
            .floors()
            .leases(1)
            .in_flight(2),
    ];
    all.extend(pairs().into_iter().filter(|c| {
        !["updates", "reads-later", "skew-beside", "one-against-two"].contains(&c.name.as_str())
    }));
    all.extend([
        pair("skew-one-step")
            .leases(1)
            .read(X, 5)
            .in_flight(2)
            .floors()
            .named("skew-one-step+all", "the same with every fault"),
        pair("locked-only")
            .read(Y, 5)
            .leases(1)
            .named("locked-only+leases", "a locked row, pushed by a read"),
        pair("locked-and-written").floors().named("locked-and-written+floors", "the same with floors"),
        pair("one-against-two").read(X, 5).named("one-against-two+reads", "the same with reads"),
        pair("write-write").in_flight(1).named("write-write+in-flight", "a proposal in flight"),
        pair("updates")
            .merge()
            .leases(1)
            .eager()
            .named("updates+merge", "the first two shards merge, one lease change"),
        pair("one-against-two")
            .floors()
            .refusals()
            .eager()
            .named("one-against-two+floors", "floors, refusals"),
        pair("retry").leases(1).named("retry+leases", "another attempt, a lease change"),
    ]);
    all
}

/// What the command searches besides: larger bounds, most of them complete in minutes.
pub fn large() -> Vec<Config> {
    let xy = X.and(Y);
    let blind = |name, about| Config::new(name, about, &[0, 1]).txn(Txn::at(3).writes(xy));
    let mut all = vec![
        blind("blind+all", "two pieces, every fault, proposals in flight")
            .read(xy, 4)
            .floors()
            .leases(2)
            .refusals()
            .unrecorded()
            .in_flight(3),
        blind("blind+closed+all", "two pieces, closed timestamps, leases, proposals in flight")
            .closes(&[3, 5])
            .read(Y, 4)
            .follower_read(xy, 3)
            .follower_read(xy, 5)
            .leases(1)
            .in_flight(2),
        blind("blind+merge+all", "two pieces whose shards merge; leases, proposals in flight")
            .closes(&[4])
            .read(xy, 4)
            .floors()
            .leases(1)
            .in_flight(2)
            .merge(),
        Config::new(
            "stale+all",
            "two transactions; a leaseholder that was replaced serves reads on",
            &[0, 1, 0],
        )
        .txn(Txn::at(3).writes(xy))
        .txn(Txn::at(4).updates(xy))
        .read(X.and(Z), 5)
        .leases(2)
        .stale_reads()
        .in_flight(1),
        Config::new("blind-3+all", "three pieces, every fault", &[0, 1, 2])
            .txn(Txn::at(3).writes(xy.and(Z)).anchor(2))
            .read(xy, 4)
            .leases(1)
            .floors()
            .refusals(),
        Config::new("blind-3+in-flight", "three pieces with proposals in flight", &[0, 1, 2])
            .txn(Txn::at(3).writes(xy.and(Z)))
            .leases(1)
            .in_flight(2),
        Config::new("locked+all", "two pieces, a locked row; every fault, proposals in flight", &[0, 1, 2])
            .txn(Txn::at(3).writes(xy).validates(Z))
            .read(xy, 4)
            .floors()
            .leases(1)
            .refusals()
            .in_flight(2),
        Config::new("beside+all", "two pieces, V beside; every fault, proposals in flight", &[0, 1, 0, 1])
            .txn(Txn::at(3).writes(xy).validates(Z.and(W)))
            .read(X, 4)
            .floors()
            .leases(2)
            .in_flight(2),
    ];
    for c in pairs() {
        let name = |with: &str| format!("{}+{with}", c.name);
        let reads = || c.clone().read(X, 5);
        all.push(reads().leases(1).named(&name("reads"), "reads at 5, one lease change"));
        all.push(c.clone().floors().refusals().named(&name("floors"), "floors, refusals"));
        all.push(
            c.clone()
                .in_flight(2)
                .leases(1)
                .named(&name("in-flight"), "two proposals in flight, one lease change"),
        );
        all.push(
            c.clone().merge().leases(1).named(&name("merge"), "the first two shards merge, one lease change"),
        );
        let all_at_once = reads().leases(1).floors().refusals();
        all.push(all_at_once.named(&name("all"), "reads at 5, one lease change, floors, refusals"));
        all.push(c.clone().closes(&[3, 5]).follower_read(X, 5).named(&name("closed"), "closed timestamps"));
    }
    let small: Vec<String> = small().into_iter().map(|c| c.name).collect();
    all.extend(pairs().into_iter().filter(|c| !small.contains(&c.name)));
    let in_small = ["skew-one-step+all", "updates+merge", "one-against-two+floors"];
    all.retain(|c| !in_small.contains(&c.name.as_str()));
    for c in &mut all {
        if small.contains(&c.name) {
            c.name += "-more";
        }
        c.eager = true;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: Vec<String> = small().into_iter().chain(large()).map(|c| c.name).collect();
        let unique: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
    }
}
