//! Which bytes of a body are asked for.

use std::ops::Range;

/// What a `Range` header comes to for a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: no range, one of another unit, or several, which may be answered so (RFC 9110).
    Whole,
    One(Range<usize>),
    /// None of it is there: 416.
    Nothing,
}

pub(super) fn part(header: Option<&str>, size: usize) -> Part {
    let Some(set) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((first, last)) = set.split_once('-').filter(|_| !set.contains(',')) else {
        return Part::Whole;
    };
    let number = |text: &str| match text.trim() {
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            // More than can be counted is beyond every body.
            Some(digits.parse::<usize>().unwrap_or(usize::MAX))
        }
        _ => None,
    };
    let range = match (first.trim(), last.trim()) {
        ("", "") => return Part::Whole,
        ("", last) => match number(last) {
            Some(count) => size.saturating_sub(count)..size,
            None => return Part::Whole,
        },
        (first, "") => match number(first) {
            Some(first) => first..size,
            None => return Part::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
            _ => return Part::Whole,
        },
    };
    if range.start < range.end { Part::One(range) } else { Part::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_has_it() {
        let of_ten = |text: &str| part(Some(text), 10);
        assert_eq!(of_ten("bytes=0-3"), Part::One(0..4));
        assert_eq!(of_ten("bytes=4-"), Part::One(4..10));
        assert_eq!(of_ten("bytes=4-99"), Part::One(4..10));
        assert_eq!(of_ten("bytes=-3"), Part::One(7..10));
        assert_eq!(of_ten("bytes=-99"), Part::One(0..10));
        assert_eq!(of_ten("bytes=9-99999999999999999999"), Part::One(9..10));
        for beyond in ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(of_ten(beyond), Part::Nothing, "{beyond}");
        }
        for whole in
            ["items=0-3", "bytes=3-1", "bytes=0-1,3-4", "bytes=x-", "bytes=-", "bytes=+1-2"]
        {
            assert_eq!(of_ten(whole), Part::Whole, "{whole}");
        }
        assert_eq!(part(None, 10), Part::Whole);
        assert_eq!(part(Some("bytes=0-"), 0), Part::Nothing);
    }

    proptest::proptest! {
        #[test]
        fn a_part_is_never_outside_of_the_body(text in "(bytes=)?[-0-9, ]{0,30}|.{0,30}", size in 0..1000_usize) {
            if let Part::One(range) = part(Some(&text), size) {
                proptest::prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
