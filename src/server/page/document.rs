//! The page, with its styles and its script inline.

/// The page may run its own script and style, and send requests to this service only.
const POLICY: &str = "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and its policy. Each call uses a new nonce, so injected markup cannot know it.
pub(crate) fn document() -> (String, String) {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let page = include_str!("index.html")
        .replace("{nonce}", &nonce)
        .replace("{css}", include_str!("page.css"))
        .replace("{js}", include_str!("page.js"));
    (page, POLICY.replace("{nonce}", &nonce))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_brings_all_it_needs_and_nothing_in_it_names_another_place() {
        let (page, policy) = document();
        assert!(page.contains("EventSource") && page.contains("prefers-color-scheme: dark"));
        assert!(!page.contains("{nonce}") && !policy.contains("{nonce}"));
        let elsewhere = page.split("http").skip(1).filter(|rest| rest.starts_with("://"));
        // SVG namespace names are not requested.
        assert!(elsewhere.clone().all(|rest| rest.starts_with("://www.w3.org/2000/svg")));
        for attribute in ["src=", "@import", "url(", "innerHTML", "style=\"", "onclick"] {
            assert!(!page.contains(attribute), "{attribute}");
        }
        assert_ne!(document().1, policy);
    }
}
