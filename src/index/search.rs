//! Searches in ascending values, each for a different guess of where the result is.

use std::hint::select_unpredictable;

/// Number of the ascending values that lie before `border`. At least the first one must. `value`
/// reads an item.
///
/// Most timestamps come at a steady pace, which predicts the border to within a few rows; the
/// search begins there and widens its steps.
pub(super) fn before<T>(values: &[T], value: impl Fn(&T) -> i64, border: i64) -> usize {
    const NEAR: usize = 8;
    let near = &values[..values.len().min(NEAR)];
    let is_before = |at: &T| value(at) < border;
    if !is_before(&near[near.len() - 1]) {
        return near.iter().take_while(|at| is_before(at)).count();
    }
    let last = values.len() - 1;
    let (least, most) = (value(&values[0]), value(&values[last]));
    if most < border {
        return values.len();
    }
    // Rounding is harmless: this is where the search begins. least < border <= most.
    let share = (border as f64 - least as f64) / (most as f64 - least as f64);
    let guess = ((share * last as f64) as usize).min(last);
    if is_before(&values[guess]) {
        return guess + gallop(&values[guess..], is_before);
    }
    // values[end] is not before the border, and finally values[start] is.
    let (mut end, mut step) = (guess, 1);
    loop {
        let start = end.saturating_sub(step);
        if is_before(&values[start]) {
            return start + values[start..end].partition_point(is_before);
        }
        (end, step) = (start, step * 2);
    }
}

/// Length of the prefix for which `below` holds. `items` must be partitioned by `below`. The cost
/// is logarithmic in the result.
pub(super) fn gallop<T>(items: &[T], below: impl Fn(&T) -> bool) -> usize {
    let mut end = 1;
    while end < items.len() && below(&items[end]) {
        end *= 2;
    }
    let known = end / 2;
    known + items[known..items.len().min(end)].partition_point(below)
}

/// The last index whose start is not after `value`; 0 if there is none.
pub(super) fn search(starts: &[i64], value: i64) -> usize {
    let mut place = 0;
    let mut length = starts.len();
    while length > 1 {
        let half = length / 2;
        place = select_unpredictable(starts[place + half] <= value, place + half, place);
        length -= half;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_border_is_found_however_unsteady_the_pace_is() {
        let values = [i64::MIN, -9, -9, -9, 0, 1, 1 << 40, i64::MAX - 1, i64::MAX];
        for from in 0..values.len() {
            for border in values.iter().copied().chain([-8, 2, 1 << 20, 1 << 60]) {
                if values[from] < border {
                    let expected = values[from..].partition_point(|&at| at < border);
                    let found = before(&values[from..], |&at| at, border);
                    assert_eq!(found, expected, "{from} {border}");
                }
            }
        }
    }
}
