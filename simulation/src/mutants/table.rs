//! What each mutant lacks, and how the text of its core becomes that of the mutant.

/// A core with one check left out.
#[derive(Debug)]
pub struct Mutant {
    /// As `narmesh-sim mutants` shows it.
    pub name: &'static str,
    /// What such a core does that it must not do.
    pub does: &'static str,
    /// Where its text differs.
    pub changes: &'static [Change],
}

/// One difference.
#[derive(Debug)]
pub struct Change {
    /// Below the `src` of the core's crate.
    pub file: &'static str,
    /// A whole expression or a whole statement, which is in the file exactly once.
    pub text: &'static str,
    /// What the mutant does instead; of an expression, another of its type.
    pub instead: &'static str,
}

const fn change(file: &'static str, text: &'static str, instead: &'static str) -> Change {
    Change { file, text, instead }
}

const fn mutant(name: &'static str, does: &'static str, changes: &'static [Change]) -> Mutant {
    Mutant { name, does, changes }
}

/// The mutants of `crates/gossip`.
pub const GOSSIP: &[Mutant] = &[
    mutant(
        "StaleGeneration",
        "accepts a lower generation after a higher one",
        &[
            change("peers/entry.rs", "claimed.is_some() && claimed < known", "false"),
            change("peers/entry.rs", "announcement.generation < known.generation", "false"),
        ],
    ),
    mutant(
        "FloorsForgotten",
        "does not read back the announcements on its disk",
        &[change("peers/entry.rs", "self.newest.get_or_insert(Newest { envelope, accepted: None });", "")],
    ),
    mutant(
        "FutureEpoch",
        "accepts an epoch of next week",
        &[change("peers/entry.rs", "announcement.generation.epoch > tomorrow", "false")],
    ),
    mutant(
        "UnsignedBody",
        "installs a body whose digest is not the signed one",
        &[
            change("exchange/pull.rs", "Summary::digest(&bytes) == pull.target.announcement().body_digest", "true"),
            change("peers/kept.rs", "Summary::digest(&self.body) != announcement.body_digest", "false"),
        ],
    ),
    mutant(
        "UnsignedDelta",
        "applies a delta although the digest of its result is not the signed one",
        &[change("exchange/pull.rs", "Summary::digest(&body) == announced.body_digest", "true")],
    ),
    mutant(
        "ForeignAudience",
        "installs a body whose audience leaves it out",
        &[change("peers/body.rs", "!summary.admits(me)", "false")],
    ),
    mutant(
        "BodyForAnyone",
        "hands a body to whoever asks",
        &[change("exchange/sync.rs", "held.admits(asker)", "true")],
    ),
    mutant(
        "NewsForAnyone",
        "tells announcements to whoever asks",
        &[change("exchange/sync.rs", "entry.audience().binary_search(&digest).is_ok()", "true")],
    ),
    mutant(
        "RemovalForgotten",
        "keeps a removed path in the filter",
        &[change("publication/mod.rs", "!self.added.remove(&part)", "!self.added.remove(&part) && false")],
    ),
    mutant(
        "EpochNotPersisted",
        "publishes a new epoch without persisting it",
        &[change("publication/mod.rs", "io.push(Output::Persist(Record::OwnEpoch(epoch.generation.epoch)));", "")],
    ),
    mutant(
        "SeqRepeated",
        "publishes a delta under the `seq` of its base",
        &[change("publication/mod.rs", "epoch.generation.seq += 1;", "")],
    ),
    mutant(
        "HalfColumn",
        "writes only half of a new filter",
        &[change(
            "table/writer.rs",
            "PlainFilter::new(filter.as_bytes())",
            "PlainFilter::new(filter.as_bytes().get(..class.bytes() / 2).unwrap_or_default())",
        )],
    ),
    mutant(
        "DeltaNotApplied",
        "does not set the bits of a delta",
        &[
            change("table/writer.rs", "filter.set(positions);", ""),
            change("table/writer.rs", "block.set(column, positions);", ""),
        ],
    ),
    mutant("LifetimeIgnored", "uses a summary for ever", &[change("gossip/mod.rs", "self.expire(peer)", "()")]),
    mutant(
        "DistrustIgnored",
        "keeps a peer that left the allowlist",
        &[change("gossip/mod.rs", "!peers.contains(peer)", "false")],
    ),
    mutant(
        "ForwarderBlamed",
        "blames a peer that forwards a stranger's announcement",
        &[change(
            "gossip/mod.rs",
            "receive_announcement(cx, pulls, author, from, &bytes)",
            "{
                if !cx.peers.contains(&author) {
                    cx.penalize(pulls, from, Misdeed::ForeignAnnouncement);
                }
                receive_announcement(cx, pulls, author, from, &bytes)
            }",
        )],
    ),
    mutant(
        "FalseHitsIgnored",
        "draws no consequence from false hits",
        &[change("peers/conduct.rs", "!too_many || self.demoted.is_some()", "true")],
    ),
    mutant(
        "NoComparison",
        "never starts a sync",
        &[change("exchange/sync.rs", "set_aside || !cx.connections.begin_sync(cx.io.now.moment, &peer)", "true")],
    ),
    mutant(
        "PullsUnbounded",
        "pulls any number of bodies at once",
        &[change("exchange/pull.rs", "cx.requests.pulls() < IN_FLIGHT_MAX", "true")],
    ),
    mutant(
        "UnclaimedBlamed",
        "blames a peer that has restarted for what it announced before",
        &[
            change("peers/entry.rs", "self.claimed.is_none()", "false"),
            change(
                "peers/entry.rs",
                "self.claimed == Some(generation)",
                "self.claimed.is_none_or(|it| it == generation)",
            ),
        ],
    ),
];

/// The mutants of `crates/quorum`.
pub const QUORUM: &[Mutant] = &[
    mutant(
        "PercentageOfHeard",
        "takes `k` as a share of the groups that were heard, not of all groups",
        &[change(
            "verdict.rs",
            "if is_name_disputed { self.k_of_disputed_name() } else { self.k(path.name()) }",
            "{
                let k = if is_name_disputed { self.k_of_disputed_name() } else { self.k(path.name()) };
                let heard: usize = attested.iter().map(|attested| attested.groups).sum();
                (k * heard).div_ceil(self.groups().max(1)).max(1)
            }",
        )],
    ),
    mutant(
        "GroupCountedTwice",
        "counts each builder of a group",
        &[change(
            "verdict.rs",
            "by_fingerprint.into_values().collect()",
            "by_fingerprint.into_values().map(|it| Attested { groups: it.builders.len(), ..it }).collect()",
        )],
    ),
    mutant(
        "DisagreeingGroupCounted",
        "counts a group whose builders disagree for one of the results",
        &[change("verdict.rs", "fingerprints.len() == 1", "true")],
    ),
    mutant(
        "VoidCounted",
        "counts one of two statements of one builder",
        &[change(
            "verdict.rs",
            "(Ballot::Void(counted), None)",
            "match counted.first() {
                Some(claim) => (Ballot::For(claim.fingerprint), Some(*claim)),
                None => (Ballot::Missing, None),
            }",
        )],
    ),
    mutant(
        "NarHashAlone",
        "takes equal NarHashes for agreement, whatever else differs",
        &[
            change(
                "verdict.rs",
                "by_fingerprint.entry(claim.fingerprint)",
                "by_fingerprint.entry(FingerprintDigest(claim.nar_hash.0))",
            ),
            change(
                "verdict.rs",
                "by_group.entry(member.group).or_default().insert(claim.fingerprint);",
                "by_group.entry(member.group).or_default().insert(FingerprintDigest(claim.nar_hash.0));",
            ),
        ],
    ),
    mutant(
        "BackdatedAccepted",
        "compares the date that a builder wrote with its revocation",
        &[change(
            "verdict.rs",
            "self.is_revoked(&vote.builder, self.since(vote))",
            "self.is_revoked(&vote.builder, vote.attested_at)",
        )],
    ),
    mutant(
        "BareSignatureCounted",
        "counts a bare Nix signature",
        &[change("verdict.rs", "vote.attested_at.is_none() && !member.signs_only_own_builds", "false")],
    ),
    mutant("GraceForAnyone", "has grace for any builder", &[change("ruling.rs", "self.has_grace(number)", "true")]),
    mutant("VetoIgnored", "takes dissent for no veto", &[change("verdict.rs", "self.require.veto", "false")]),
    mutant(
        "NothingTold",
        "tells nobody of news, and begins no comparison on a new connection",
        &[
            change("exchange/news.rs", "!peer.spoken.told.is_empty() && peer.shunned_until <= now", "false"),
            change("exchange/mod.rs", "spoken.counted.adds_to(&known.spoken.counted)", "false"),
        ],
    ),
];

/// The mutants of `crates/roster`.
pub const ROSTER: &[Mutant] = &[
    mutant(
        "UnsignedRoster",
        "takes a roster of whoever signed it",
        &[change(
            "exchange/mod.rs",
            "SignedRoster::open(&membership.key, bytes)",
            "SignedRoster::open(&narmesh_protocol::NixPublicKey::new(\"home\", bytes.get(1..33).and_then(|key| \
             key.try_into().ok()).unwrap_or(&[0; 32])).unwrap_or_else(|_| membership.key.clone()), bytes)",
        )],
    ),
    mutant(
        "OldRoster",
        "takes a roster that is older than its own",
        &[change("exchange/mod.rs", "version > membership.version()", "true")],
    ),
    mutant(
        "RosterForAnyone",
        "gives a roster to whoever asks",
        &[change("membership.rs", "node_key_of(peer).is_some_and(|key| roster.member(&key).is_some())", "true")],
    ),
    mutant(
        "RosterNotTold",
        "tells nobody of another roster",
        &[change("exchange/mod.rs", "known.version < Some(version)", "false")],
    ),
    mutant(
        "NobodyGreeted",
        "asks nobody on a new connection",
        &[change("exchange/mod.rs", "self.greet(peer)", "self.peers.insert(peer, Known::default());")],
    ),
    mutant(
        "EndlessPatience",
        "waits for a silent peer, whatever others have",
        &[change("exchange/mod.rs", "self.waits_until = now + PATIENCE_MS;", "self.waits_until = now + 600_000;")],
    ),
    mutant(
        "LostEdit",
        "does not make edits again that a newer roster lacks",
        &[change("journal.rs", "edit.number > count", "false")],
    ),
    mutant(
        "UndoneAgain",
        "makes all of its edits again when one was lost",
        &[change("journal.rs", "edit.number > count", "true")],
    ),
];
