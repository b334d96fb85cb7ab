//! The corpus of the fuzz targets, and random packets made from it: what fuzzing would find, in a bounded time.

mod checks;

use std::fs;
use std::path::Path;

use mesonet_dns_server::Probe;
use proptest::prelude::*;
use proptest::sample::Index;

/// Files of the corpus, so that an empty one does not pass.
const CORPUS_LENGTH_MIN: usize = 20;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/packets");
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= CORPUS_LENGTH_MIN, "{} files in {}", paths.len(), folder.display());
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

fn check(probe: &Probe, packet: &[u8]) {
    checks::check_parser(probe, packet);
    checks::check_fast_path(probe, packet);
    checks::check_full_path(probe, packet);
}

#[test]
fn the_corpus_holds() {
    let probe = checks::probe();
    let corpus = corpus();
    corpus.iter().for_each(|packet| check(&probe, packet));
    // It reaches all of it.
    assert!(corpus.iter().any(|packet| probe.fast(packet).is_some()));
    assert!(corpus.iter().any(|packet| !probe.is_known(packet) && probe.full(packet).is_some()));
    assert!(corpus.iter().any(|packet| probe.full(packet).is_none()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    #[test]
    fn packets_made_from_the_corpus_hold(
        made in proptest::collection::vec(
            (
                any::<Index>(),
                proptest::collection::vec((any::<Index>(), any::<u8>()), 0..4),
                proptest::option::weighted(0.2, any::<Index>()),
                proptest::collection::vec(any::<u8>(), 0..6),
                proptest::bool::weighted(0.3),
            ),
            100,
        ),
    ) {
        let (probe, corpus) = (checks::probe(), corpus());
        for (which, damage, cut, tail, extend) in made {
            let mut packet = which.get(&corpus).clone();
            for (at, octet) in damage {
                if !packet.is_empty() {
                    let at = at.index(packet.len());
                    packet[at] = octet;
                }
            }
            if let Some(cut) = cut {
                packet.truncate(cut.index(packet.len() + 1));
            }
            if extend {
                packet.extend(tail);
            }
            check(&probe, &packet);
        }
    }
}
