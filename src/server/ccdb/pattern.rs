//! Patterns for paths.

/// A path, or a pattern for several.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Plain,
    Wild {
        /// Every match is this path or lies below it.
        prefix: String,
        /// `*` for any characters; paths below a match also match.
        glob: String,
    },
}

impl Pattern {
    /// `.*`, `*` and `%` each match any characters, as at both kinds of server.
    pub(super) fn new(path: &str) -> Self {
        let glob = path.replace(".*", "*").replace('%', "*");
        let Some((before, _)) = glob.split_once('*') else { return Self::Plain };
        let prefix = before.rsplit_once('/').map_or("", |(prefix, _)| prefix).to_owned();
        Self::Wild { prefix, glob }
    }
}

/// Whether `glob` matches `path` or a folder above it.
pub(super) fn glob_matches(glob: &str, path: &str) -> bool {
    let borders = path.match_indices('/').map(|(place, _)| place).chain([path.len()]);
    borders.into_iter().any(|end| matches_whole(glob.as_bytes(), &path.as_bytes()[..end]))
}

pub(super) fn matches_whole(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    // The position to resume from if the text after the last star does not match.
    let mut star = None;
    loop {
        match (glob.get(g), text.get(t)) {
            (Some(b'*'), _) => {
                star = Some((g + 1, t));
                g += 1;
            }
            (Some(a), Some(b)) if a == b => (g, t) = (g + 1, t + 1),
            (None, None) => return true,
            _ => match star {
                Some((after, from)) if from < text.len() => {
                    star = Some((after, from + 1));
                    (g, t) = (after, from + 1);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_both_kinds_of_server_agree_on() {
        let matches = |pattern: &str, path: &str| match Pattern::new(pattern) {
            Pattern::Wild { glob, prefix } => {
                path.starts_with(&prefix) && glob_matches(&glob, path)
            }
            Pattern::Plain => panic!("{pattern} is a pattern"),
        };
        for (pattern, path) in [
            ("A/.*", "A/One"),
            ("A/*", "A/Two/Deep"),
            ("A/%", "A/One"),
            (".*", "A"),
            ("A/T*", "A/Two/Deep"),
            ("A/T.*o", "A/Two/Deep"),
            ("*/One", "A/One/Below"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in
            [("A/.*", "A"), ("A/.*", "AB/One"), ("A/T*", "A/One"), ("*/One", "One")]
        {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
        assert_eq!(Pattern::new("A/B.c"), Pattern::Plain);
    }
}
