//! The order in which `nix copy` fetches NARs: a path comes after the paths that it refers to.
//!
//! Nix (`Store::topoSortPaths`, then reversed, in `copyPaths`) visits paths and their references depth first, ordered
//! by base name, and takes each path when all that it refers to is taken.

use narmesh_protocol::{HashPart, NarInfo, NarUrl};
use std::collections::{BTreeMap, HashSet, VecDeque};

/// The NARs of these paths in the order in which Nix will ask for them. References to other paths are ignored.
pub(super) fn copy_order<'a>(infos: impl IntoIterator<Item = &'a NarInfo>) -> VecDeque<NarUrl> {
    // Hash parts sort as base names do, because no two paths share one.
    let infos: BTreeMap<HashPart, &NarInfo> = infos.into_iter().map(|info| (info.path.hash_part(), info)).collect();
    let mut order = VecDeque::with_capacity(infos.len());
    let mut visited = HashSet::with_capacity(infos.len());
    for (part, info) in &infos {
        if !visited.insert(*part) {
            continue;
        }
        // This is not recursive, because a chain may be as long as there are paths.
        let mut branch = vec![(*info, info.references.iter())];
        while let Some((info, left)) = branch.last_mut() {
            match left.next() {
                Some(reference) => {
                    let reference = reference.hash_part();
                    if let Some(next) = infos.get(&reference)
                        && visited.insert(reference)
                    {
                        branch.push((next, next.references.iter()));
                    }
                }
                None => {
                    order.push_back(NarUrl::new(info.path.hash_part(), info.nar_hash, info.nar_size));
                    branch.pop();
                }
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{NarHash, StorePath};

    fn part(letter: char) -> HashPart {
        HashPart::parse(&letter.to_string().repeat(32)).unwrap()
    }

    fn info(letter: char, references: &str) -> NarInfo {
        let path = |letter: char| StorePath::new(part(letter), "x").unwrap();
        NarInfo {
            path: path(letter),
            nar_hash: NarHash([0; 32]),
            nar_size: 1,
            references: references.chars().map(path).collect(),
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
        }
    }

    fn order_of(infos: &[NarInfo]) -> String {
        let letters = |url: NarUrl| url.hash_part.to_string().chars().next().unwrap();
        copy_order(infos).into_iter().map(letters).collect()
    }

    #[test]
    fn references_come_first_and_names_decide_the_rest() {
        // d refers to nothing; a refers to b and c, which both refer to f; f refers to itself; z is not among them.
        let infos = [info('a', "bcz"), info('b', "f"), info('c', "f"), info('d', ""), info('f', "f")];
        assert_eq!(order_of(&infos), "fbcad");
    }

    #[test]
    fn references_in_a_circle_end() {
        assert_eq!(order_of(&[info('a', "b"), info('b', "a")]), "ba");
    }

    #[test]
    fn long_chain_of_references_overflows_no_stack() {
        let parts: Vec<_> = (0..100_000_u32)
            .map(|number| {
                let mut bytes = [0; 20];
                bytes[16..].copy_from_slice(&number.to_le_bytes());
                HashPart(bytes)
            })
            .collect();
        let infos: Vec<_> = parts
            .iter()
            .enumerate()
            .map(|(at, part)| {
                let path = |part: &HashPart| StorePath::new(*part, "x").unwrap();
                NarInfo {
                    path: path(part),
                    references: parts.get(at + 1).map(path).into_iter().collect(),
                    ..info('a', "")
                }
            })
            .collect();
        let order = copy_order(&infos);
        assert_eq!(order.len(), infos.len());
        assert_eq!(order.front().unwrap().hash_part, *parts.last().unwrap());
    }
}
