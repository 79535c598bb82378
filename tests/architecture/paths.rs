//! The paths that a source file names.

use std::collections::BTreeSet;

use syn::visit::{self, Visit};

use crate::items::{attributes, is_test};
use crate::sources::Module;

/// Collects the paths named in a file, made absolute.
pub(crate) struct Paths {
    /// The module that the walk is in.
    pub(crate) module: Module,
    pub(crate) found: BTreeSet<Module>,
    /// `use` items: the local name and the path that it stands for.
    pub(crate) uses: Vec<(String, Module)>,
    /// Types defined here.
    pub(crate) types: Vec<String>,
    /// Number of nested inline modules around the walk's position.
    pub(crate) depth: usize,
    /// Number of nested function bodies around it: types there are private to one function.
    pub(crate) bodies: usize,
}

impl Paths {
    pub(crate) fn of(module: &Module, syntax: &syn::File) -> Self {
        let (found, uses, types) = (BTreeSet::new(), Vec::new(), Vec::new());
        let mut paths = Self { module: module.clone(), found, uses, types, depth: 0, bodies: 0 };
        paths.visit_file(syntax);
        paths
    }

    /// A path from the crate's root, if it begins with `crate`, `self` or `super`.
    fn absolute(&self, segments: &[String]) -> Option<Module> {
        let mut path = match segments.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.module.clone(),
            _ => return None,
        };
        let mut rest = segments;
        while let Some(first) = rest.first() {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => {
                    path.pop()?;
                }
                _ => break,
            }
            rest = &rest[1..];
        }
        path.extend(rest.iter().cloned());
        Some(path)
    }

    fn add(&mut self, segments: &[String]) {
        let path = self.absolute(segments);
        self.found.extend(path);
    }

    fn add_use(&mut self, tree: &syn::UseTree, prefix: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_use(&path.tree, prefix);
                prefix.pop();
            }
            syn::UseTree::Name(name) => self.add_name(&name.ident, &name.ident, prefix),
            syn::UseTree::Rename(name) => self.add_name(&name.ident, &name.rename, prefix),
            syn::UseTree::Glob(_) => self.add(prefix),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, prefix);
                }
            }
        }
    }

    fn add_name(&mut self, name: &syn::Ident, known_as: &syn::Ident, prefix: &[String]) {
        let mut segments = prefix.to_vec();
        if name != "self" {
            segments.push(name.to_string());
        }
        // `use answer::Answer` next to `mod answer`.
        let local = self.absolute(&segments).or_else(|| {
            let mut path = self.module.clone();
            path.extend(segments.iter().cloned());
            Some(path)
        });
        if self.depth == 0 {
            self.uses.extend(local.map(|path| (known_as.to_string(), path)));
        }
        self.add(&segments);
    }
}

impl<'a> Visit<'a> for Paths {
    fn visit_item(&mut self, item: &'a syn::Item) {
        if is_test(attributes(item)) {
            return;
        }
        let name = match item {
            syn::Item::Struct(item) => Some(&item.ident),
            syn::Item::Enum(item) => Some(&item.ident),
            syn::Item::Union(item) => Some(&item.ident),
            syn::Item::Trait(item) => Some(&item.ident),
            syn::Item::Type(item) => Some(&item.ident),
            _ => None,
        };
        if self.bodies == 0 {
            self.types.extend(name.map(ToString::to_string));
        }
        visit::visit_item(self, item);
    }

    fn visit_block(&mut self, block: &'a syn::Block) {
        self.bodies += 1;
        visit::visit_block(self, block);
        self.bodies -= 1;
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        self.module.push(item.ident.to_string());
        self.depth += 1;
        visit::visit_item_mod(self, item);
        self.depth -= 1;
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.add_use(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let segments: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}

    fn visit_attribute(&mut self, _: &'a syn::Attribute) {}

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        let text = item.tokens.to_string();
        for start in ["crate ::", "super ::"] {
            for (at, _) in text.match_indices(start) {
                let segments: Vec<String> = text[at..]
                    .split("::")
                    .map(|part| part.trim())
                    .map_while(|part| {
                        let end = part.find(|c: char| !c.is_alphanumeric() && c != '_');
                        let name = &part[..end.unwrap_or(part.len())];
                        (!name.is_empty()).then(|| name.to_owned())
                    })
                    .collect();
                self.add(&segments);
            }
        }
        visit::visit_macro(self, item);
    }
}
