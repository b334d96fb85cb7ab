//! In which order apps are brought up.

use std::collections::BTreeMap;

use mesonet_model::AppId;

/// How an app stands in the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// On the path that is being followed.
    Open,
    /// Done, with the number of apps on its longest chain of dependencies.
    Closed(usize),
}

/// The length of the longest chain of dependencies below each app that is reached from the roots. An app on a circle is
/// the error. The search keeps its own stack, so that a long chain does not exhaust the thread's.
pub(crate) fn longest_paths(
    roots: impl IntoIterator<Item = AppId>,
    dependencies: impl Fn(&AppId) -> Vec<AppId>,
) -> Result<BTreeMap<AppId, usize>, AppId> {
    let mut marks: BTreeMap<AppId, Mark> = BTreeMap::new();
    for root in roots {
        let mut path = Vec::new();
        open(root, &dependencies, &mut marks, &mut path)?;
        while let Some((app, below, length)) = path.last_mut() {
            match below.pop() {
                Some(next) => match marks.get(&next) {
                    Some(Mark::Closed(other)) => *length = (*length).max(other + 1),
                    Some(Mark::Open) => return Err(next),
                    None => {
                        // Looked at again once it is closed, to take its length into account.
                        below.push(next.clone());
                        open(next, &dependencies, &mut marks, &mut path)?;
                    }
                },
                None => {
                    marks.insert(app.clone(), Mark::Closed(*length));
                    path.pop();
                }
            }
        }
    }
    let closed = marks.into_iter().filter_map(|(app, mark)| match mark {
        Mark::Open => None,
        Mark::Closed(length) => Some((app, length)),
    });
    Ok(closed.collect())
}

fn open(
    app: AppId,
    dependencies: &impl Fn(&AppId) -> Vec<AppId>,
    marks: &mut BTreeMap<AppId, Mark>,
    path: &mut Vec<(AppId, Vec<AppId>, usize)>,
) -> Result<(), AppId> {
    match marks.get(&app) {
        Some(Mark::Open) => Err(app),
        Some(Mark::Closed(_)) => Ok(()),
        None => {
            marks.insert(app.clone(), Mark::Open);
            let below = dependencies(&app);
            path.push((app, below, 0));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(number: usize) -> AppId {
        AppId::parse(&format!("/app{number}")).expect("valid")
    }

    #[test]
    fn the_longest_path_counts() {
        let edges = [(0, vec![1, 2]), (1, vec![2]), (2, vec![]), (3, vec![0, 2])];
        let edges: BTreeMap<AppId, Vec<AppId>> =
            edges.into_iter().map(|(from, to)| (app(from), to.into_iter().map(app).collect())).collect();
        let lengths = longest_paths(edges.keys().cloned(), |id| edges[id].clone()).expect("no circle");
        let lengths: Vec<usize> = (0..4).map(|number| lengths[&app(number)]).collect();
        assert_eq!(lengths, [2, 1, 0, 3]);
    }

    #[test]
    fn circles_are_found() {
        let next = |id: &AppId| vec![app((id.as_str()[4..].parse::<usize>().expect("number") + 1) % 3)];
        assert!(longest_paths([app(0)], next).is_err());
        assert_eq!(longest_paths([app(7)], |id| vec![id.clone()]), Err(app(7)));
    }

    #[test]
    fn a_long_chain_does_not_exhaust_the_stack() {
        let next = |id: &AppId| {
            let number: usize = id.as_str()[4..].parse().expect("number");
            number.checked_sub(1).map(app).into_iter().collect()
        };
        assert_eq!(longest_paths([app(50_000)], next).expect("no circle")[&app(50_000)], 50_000);
    }
}
