//! Requested byte ranges of a body.

use std::ops::Range;

/// Maximum ranges per request; a request for more gets the whole body.
const MAX_RANGES: usize = 64;

/// The effect of a `Range` header on a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyPart {
    /// All of it: no range, one of another unit, too many, or several that overlap.
    Whole,
    One(Range<usize>),
    /// Several, in the order asked for.
    Several(Vec<Range<usize>>),
    /// No range lies within the body: 416.
    Nothing,
}

pub(super) fn part(header: Option<&str>, size: usize) -> BodyPart {
    let Some(set) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else {
        return BodyPart::Whole;
    };
    let Some(mut ranges) = set.split(',').map(|one| range(one, size)).collect::<Option<Vec<_>>>()
    else {
        return BodyPart::Whole;
    };
    ranges.retain(|range| range.start < range.end);
    let total = ranges.iter().map(ExactSizeIterator::len).fold(0, usize::saturating_add);
    match ranges.len() {
        0 => BodyPart::Nothing,
        1 => BodyPart::One(ranges.remove(0)),
        count if count > MAX_RANGES || total > size => BodyPart::Whole,
        _ => BodyPart::Several(ranges),
    }
}

/// One range, possibly empty; `None` if it is invalid.
fn range(text: &str, size: usize) -> Option<Range<usize>> {
    let (first, last) = text.split_once('-')?;
    let number = |text: &str| match text.trim() {
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            // A number too large to represent is beyond every body.
            Some(digits.parse::<usize>().unwrap_or(usize::MAX))
        }
        _ => None,
    };
    match (first.trim(), last.trim()) {
        ("", "") => None,
        ("", last) => Some(size.saturating_sub(number(last)?)..size),
        (first, "") => Some(number(first)?..size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| first..last.saturating_add(1).min(size))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_has_it() {
        let of_ten = |text: &str| part(Some(text), 10);
        assert_eq!(of_ten("bytes=0-3"), BodyPart::One(0..4));
        assert_eq!(of_ten("bytes=4-"), BodyPart::One(4..10));
        assert_eq!(of_ten("bytes=4-99"), BodyPart::One(4..10));
        assert_eq!(of_ten("bytes=-3"), BodyPart::One(7..10));
        assert_eq!(of_ten("bytes=-99"), BodyPart::One(0..10));
        assert_eq!(of_ten("bytes=9-99999999999999999999"), BodyPart::One(9..10));
        for beyond in ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(of_ten(beyond), BodyPart::Nothing, "{beyond}");
        }
        for whole in
            ["items=0-3", "bytes=3-1", "bytes=0-1,x", "bytes=x-", "bytes=-", "bytes=0-8,1-9"]
        {
            assert_eq!(of_ten(whole), BodyPart::Whole, "{whole}");
        }
        assert_eq!(of_ten("bytes=0-1, 3-4,99-"), BodyPart::Several(vec![0..2, 3..5]));
        assert_eq!(of_ten("bytes=0-1,99-"), BodyPart::One(0..2));
        assert_eq!(part(None, 10), BodyPart::Whole);
        assert_eq!(part(Some("bytes=0-"), 0), BodyPart::Nothing);
    }

    proptest::proptest! {
        #[test]
        fn a_part_is_never_outside_of_the_body(text in "(bytes=)?[-0-9, ]{0,30}|bytes=([0-9]{1,2}-[0-9]{0,2},?){1,4}|.{0,30}", size in 0..1000_usize) {
            let ranges = match part(Some(&text), size) {
                BodyPart::One(range) => vec![range],
                BodyPart::Several(ranges) => ranges,
                BodyPart::Whole | BodyPart::Nothing => Vec::new(),
            };
            for range in ranges {
                proptest::prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
