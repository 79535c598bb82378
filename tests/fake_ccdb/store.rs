//! Versions, and how each kind of server finds, names and lists them, mistakes included.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use md5::{Digest as _, Md5};
use uuid::Uuid;

use super::wire::{Reply, Request};
use super::{Ask, Kind, Repeat, State, pages};

/// A version as stored by the server.
#[derive(Debug, Clone)]
pub struct Version {
    pub path: String,
    pub id: Uuid,
    pub from: i64,
    pub until: i64,
    pub created: i64,
    pub metadata: Vec<(String, String)>,
    pub bytes: Bytes,
    /// Checksum of the bytes as uploaded: servers do not verify it again.
    pub md5: String,
    /// Time of the last change by PUT.
    pub modified: i64,
}

/// An upload.
#[derive(Debug, Clone)]
pub struct Upload {
    path: String,
    from: i64,
    until: i64,
    created: i64,
    id: Uuid,
    metadata: Vec<(String, String)>,
    bytes: Bytes,
}

impl Upload {
    /// A version of `path` for `[from, until)`, created at 1,000,000.
    pub fn new(path: &str, from: i64, until: i64) -> Self {
        let id = Uuid::new_v4();
        let bytes = format!("{path} {from} {until} {id}").into_bytes().into();
        Self { path: path.into(), from, until, created: 1_000_000, id, metadata: vec![], bytes }
    }

    pub fn created(mut self, created: i64) -> Self {
        self.created = created;
        self
    }

    pub fn id(mut self, id: Uuid) -> Self {
        self.id = id;
        self
    }

    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    pub fn bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.bytes = Bytes::from(bytes.into());
        self
    }

    pub(crate) fn into_version(self) -> Version {
        let Self { path, from, until, created, id, metadata, bytes } = self;
        let sum: [u8; 16] = Md5::digest(&bytes).into();
        let md5 = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        Version { path, id, from, until, created, metadata, bytes, md5, modified: created }
    }
}

/// The kind of a request.
pub(crate) fn kind_of(request: &Request) -> Ask {
    if request.target.starts_with("/browse") || request.target.starts_with("/latest") {
        return Ask::Listing;
    }
    let path = request.target.split('?').next().unwrap_or_default();
    let names_one = path.starts_with("/download/")
        || path.rsplit('/').next().is_some_and(|last| Uuid::parse_str(last).is_ok());
    if names_one { Ask::Body } else { Ask::LookUp }
}

/// A request as parsed by RequestParser.
#[derive(Default)]
struct Wanted {
    path: Vec<String>,
    at: Option<i64>,
    until: Option<i64>,
    id: Option<Uuid>,
    filters: Vec<(String, String)>,
    /// Whether a part did not parse.
    nonsense: bool,
}

impl Wanted {
    fn parse(path: &str) -> Self {
        let mut wanted = Self::default();
        let mut times = 0;
        for token in path.split('/').filter(|token| !token.is_empty()) {
            if let Some((key, value)) = token.split_once('=') {
                wanted.filters.push((form_decoded(key), form_decoded(value)));
                continue;
            }
            let token = form_decoded(token);
            if let Ok(time) = token.parse::<i64>() {
                times += 1;
                match wanted.at {
                    None => wanted.at = Some(time),
                    Some(_) => wanted.until = Some(time),
                }
            } else if wanted.at.is_none() {
                wanted.path.push(token);
            } else if let Ok(id) = Uuid::parse_str(&token) {
                wanted.id = Some(id);
            } else {
                wanted.nonsense = true;
            }
        }
        wanted.nonsense |= times > 2 || wanted.path.len() > 10;
        wanted
    }
}

/// The bytes of the first part of a form.
fn first_part(body: &[u8], boundary: &str) -> Option<Vec<u8>> {
    let find = |text: &[u8], from: usize| {
        body[from..].windows(text.len()).position(|w| w == text).map(|place| from + place)
    };
    let start = find(format!("--{boundary}\r\n").as_bytes(), 0)?;
    let start = find(b"\r\n\r\n", start)? + 4;
    let end = find(format!("\r\n--{boundary}").as_bytes(), start)?;
    Some(body[start..end].to_vec())
}

/// `+` stands for a blank there.
fn form_decoded(token: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = token.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex = std::str::from_utf8(&after[..2]).unwrap();
                bytes.push(u8::from_str_radix(hex, 16).unwrap());
                rest = &after[2..];
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

impl State {
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        match request.method.as_str() {
            "POST" | "PUT" | "DELETE" => return self.change(request, path, query),
            "GET" => {}
            "HEAD" if !self.habits.lock().unwrap().no_head => {}
            _ => return pages::status(501, "not implemented"),
        }
        if let Some(rest) = path.strip_prefix("/truncate/") {
            return self.truncate(request, &Wanted::parse(rest));
        }
        if let Some(rest) = path.strip_prefix("/browse") {
            return self.browse(request, &Wanted::parse(rest), false);
        }
        if let Some(rest) = path.strip_prefix("/latest") {
            return self.browse(request, &Wanted::parse(rest), true);
        }
        let is_sql = self.is_sql();
        let has_downloads = is_sql || self.kind == Kind::Memory;
        if let Some(id) = path.strip_prefix("/download/").filter(|_| has_downloads) {
            return self.download(id);
        }
        let wanted = Wanted::parse(path);
        let (Some(at), false, false) = (wanted.at, wanted.nonsense, wanted.path.is_empty()) else {
            return pages::usage(request);
        };
        let versions = self.versions.lock().unwrap();
        let path_wanted = wanted.path.join("/");
        // A file-backed server ignores the UUID unless the time is positive.
        let by_id = wanted.id.filter(|_| is_sql || at > 0);
        let covering = |version: &&Version| match by_id {
            Some(id) if is_sql => version.id == id && version.from <= at && at < version.until,
            Some(id) => version.id == id && version.from == at,
            None => version.from <= at && at < version.until,
        };
        let found = versions
            .iter()
            .filter(|version| version.path == path_wanted)
            .filter(covering)
            .filter(|version| created_within(version, request))
            .filter(|version| wanted.filters.iter().all(|filter| self.passes(version, filter)))
            .max_by_key(|version| version.created);
        let Some(version) = found else {
            let habits = self.habits.lock().unwrap();
            return match &habits.upstream {
                Some(upstream) => Reply::elsewhere(&format!("{upstream}{path}?prepare=sync")),
                None => pages::status(404, "No matching objects found"),
            };
        };
        if wanted.id.is_none() && names(request.header("if-none-match"), version.id) {
            let mut reply = Reply::new(304);
            reply.push("Cache-Control", "no-cache");
            reply.push("Date", "Mon, 23 Nov 2026 08:17:21 GMT");
            if let Some(until) = self.habits.lock().unwrap().cache_valid_until {
                reply.push("Cache-Valid-Until", &until.to_string());
            }
            return reply;
        }
        match self.kind {
            Kind::Local | Kind::Memory if wanted.id.is_some() => self.with_body(version, true),
            _ => self.name(version, query.contains("HTTPOnly=true")),
        }
    }

    /// Deletes what a listing with the same address has, and of it the newest ones.
    fn truncate(&self, request: &Request, wanted: &Wanted) -> Reply {
        let mut versions = self.versions.lock().unwrap();
        let path = wanted.path.join("/");
        let covers = |v: &Version| wanted.at.is_none_or(|at| v.from <= at && at < v.until);
        let is_named = |v: &Version| match wanted.id {
            Some(id) if self.is_sql() => v.id == id && covers(v),
            Some(id) if wanted.at > Some(0) => v.id == id && Some(v.from) == wanted.at,
            _ => covers(v),
        };
        let mut meant: Vec<(i64, Uuid)> = versions
            .iter()
            .filter(|v| v.path == path && is_named(v) && created_within(v, request))
            .filter(|v| wanted.filters.iter().all(|filter| self.passes(v, filter)))
            .map(|v| (v.created, v.id))
            .collect();
        if let Some(limit) = request.header("browse-limit").and_then(|text| text.parse().ok()) {
            meant.sort_unstable_by_key(|(created, _)| std::cmp::Reverse(*created));
            meant.truncate(limit);
        }
        versions.retain(|v| v.path != path || !meant.contains(&(v.created, v.id)));
        let mut reply = Reply::new(if meant.is_empty() { 304 } else { 204 });
        reply.push("Deleted", &format!("{} objects", meant.len()));
        reply
    }

    /// POST, PUT and DELETE, as in the file-backed server.
    fn change(&self, request: &Request, path: &str, query: &str) -> Reply {
        let wanted = Wanted::parse(path);
        let (Some(at), false) = (wanted.at, wanted.nonsense) else { return pages::usage(request) };
        let path = wanted.path.join("/");
        let mut versions = self.versions.lock().unwrap();
        if request.method == "POST" {
            let content_type = request.header("content-type").unwrap_or_default();
            let Some((_, boundary)) = content_type.split_once("boundary=") else {
                return pages::status(500, "not multipart");
            };
            let Some(bytes) = first_part(&request.body, boundary) else {
                return pages::status(400, "POST request doesn't contain the data to upload");
            };
            let last = versions.iter().map(|version| version.created).max().unwrap_or(0);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
            let created = now.max(last + 1);
            let mut upload = Upload::new(&path, at, wanted.until.unwrap_or(at + 1));
            upload = upload.created(created).bytes(bytes);
            upload.metadata = wanted.filters;
            if let Some(id) = wanted.id {
                upload = upload.id(id);
            }
            let version = upload.into_version();
            let mut reply = Reply::new(201);
            self.describe(&version, &mut reply);
            reply.push("Location", &format!("/{path}/{at}/{}", version.id));
            versions.push(version);
            return reply;
        }
        // A file-backed server ignores the UUID unless the time is positive.
        let by_id = wanted.id.filter(|_| self.is_sql() || at > 0);
        let found = versions
            .iter()
            .enumerate()
            .filter(|(_, v)| v.path == path)
            .filter(|(_, v)| match by_id {
                Some(id) if !self.is_sql() => v.id == id && v.from == at,
                Some(id) => v.id == id && v.from <= at && at < v.until,
                None => v.from <= at && at < v.until,
            })
            .filter(|(_, v)| created_within(v, request))
            .filter(|(_, v)| wanted.filters.iter().all(|filter| self.passes(v, filter)))
            .max_by_key(|(_, v)| v.created);
        let Some(place) = found.map(|(place, _)| place) else {
            return pages::status(404, "No matching objects found");
        };
        if request.method == "DELETE" {
            versions.remove(place);
            return Reply::new(204);
        }
        let version = &mut versions[place];
        version.modified += 1;
        version.until = wanted.until.unwrap_or(version.until);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (form_decoded(key), form_decoded(value));
            version.metadata.retain(|(known, _)| *known != key);
            if !value.is_empty() {
                version.metadata.push((key, value));
            }
        }
        let version = version.clone();
        let mut reply = Reply::new(204);
        self.describe(&version, &mut reply);
        reply
    }

    fn is_sql(&self) -> bool {
        matches!(self.kind, Kind::Sql | Kind::SqlLocalCopyFirst)
    }

    /// Exact in the SQL-backed server; in the others, a key that matches except for its
    /// case inverts the result.
    fn passes(&self, version: &Version, (key, value): &(String, String)) -> bool {
        let exact = version.metadata.iter().find(|(k, _)| k == key);
        let nearly = version.metadata.iter().find(|(k, _)| k.eq_ignore_ascii_case(key));
        match (exact, nearly) {
            (Some((_, is)), _) => is == value,
            (None, Some((_, is))) if !self.is_sql() => is != value,
            _ => false,
        }
    }

    /// The answer to a look-up: 303, or the body at once.
    fn name(&self, version: &Version, http_only: bool) -> Reply {
        let locations = self.locations(version, http_only);
        let is_sql = self.is_sql();
        let here = locations.iter().any(|l| l.contains("/download/"));
        if self.kind == Kind::SqlLocalCopyFirst && here {
            let mut reply = self.with_body(version, true);
            let place = reply.headers.iter().position(|(name, _)| name == "Date").unwrap();
            for location in locations.iter().rev() {
                let header = ("Content-Location".to_owned(), location.clone());
                reply.headers.insert(place, header);
            }
            return reply;
        }
        let mut reply = Reply::new(303);
        reply.push("Cache-Control", "no-cache");
        if is_sql {
            for location in &locations {
                reply.push("Content-Location", location);
            }
        }
        self.describe(version, &mut reply);
        match locations.first() {
            Some(location) => reply.push("Location", location),
            None => {
                let page = pages::status(500, "java.util.NoSuchElementException");
                reply.status = 500;
                reply.body = page.body;
                reply.last = true;
            }
        }
        reply
    }

    fn locations(&self, version: &Version, http_only: bool) -> Vec<String> {
        let habits = self.habits.lock().unwrap();
        let Version { path, id, from, .. } = version;
        if let Some(replicas) = &habits.replicas {
            return replicas
                .iter()
                .map(|replica| replica.replace("{id}", &id.to_string()))
                .filter(|replica| !http_only || !replica.starts_with("alien:"))
                .collect();
        }
        let host =
            if habits.absolute_urls { format!("http://{}", self.address) } else { "".into() };
        match self.kind {
            Kind::Local => vec![format!("{host}/{path}/{from}/{id}")],
            Kind::Memory => vec![format!("{from}/{id}")],
            Kind::Sql | Kind::SqlLocalCopyFirst => {
                let mut all = Vec::new();
                if (habits.on_grid || habits.only_on_grid) && !http_only {
                    all.push(format!("alien:///alice/data/CCDB/{path}/03/31287/{id}"));
                }
                if !habits.only_on_grid {
                    all.push(format!("{host}/download/{id}"));
                }
                all
            }
        }
    }

    fn download(&self, id: &str) -> Reply {
        let Ok(id) = Uuid::parse_str(id) else { return pages::status(400, "no UUID") };
        let versions = self.versions.lock().unwrap();
        let only_on_grid = self.habits.lock().unwrap().only_on_grid;
        match versions.iter().find(|version| version.id == id && !only_on_grid) {
            Some(version) => self.with_body(version, false),
            None => pages::status(404, "No matching objects found"),
        }
    }

    fn with_body(&self, version: &Version, cache_control: bool) -> Reply {
        let mut reply = Reply::new(200);
        if cache_control {
            reply.push("Cache-Control", "no-cache");
        }
        self.describe(version, &mut reply);
        let add = |reply: &mut Reply, name: &str, value: &str| {
            // Metadata with that name are present already and stay.
            if !reply.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
                reply.push(name, value);
            }
        };
        add(&mut reply, "Accept-Ranges", "bytes");
        add(&mut reply, "Content-Disposition", "inline;filename=\"a.txt\"");
        add(&mut reply, "Content-MD5", &version.md5);
        add(&mut reply, "Content-Type", "text/plain");
        reply.body.clone_from(&version.bytes);
        reply.is_version = true;
        reply
    }

    fn describe(&self, version: &Version, reply: &mut Reply) {
        reply.push("Date", "Mon, 23 Nov 2026 08:17:21 GMT");
        reply.push("Valid-Until", &version.until.to_string());
        reply.push("Valid-From", &version.from.to_string());
        reply.push("Created", &version.created.to_string());
        reply.push("ETag", &format!("\"{}\"", version.id));
        let changed = if self.is_sql() { version.created } else { version.modified };
        let since = Duration::from_millis(changed.clamp(0, 253_402_300_799_000).cast_unsigned());
        reply.push("Last-Modified", &httpdate::fmt_http_date(UNIX_EPOCH + since));
        if let Some(until) = self.habits.lock().unwrap().cache_valid_until {
            reply.push("Cache-Valid-Until", &until.to_string());
        }
        let mut metadata = self.metadata_of(version);
        if self.kind == Kind::Memory {
            let until = version.until.to_string();
            let size = version.bytes.len().to_string();
            for (key, value) in [
                ("InitialValidityLimit", until.as_str()),
                ("OriginalFileName", "a.txt"),
                ("UploadedFrom", "127.0.0.1"),
                ("File-Size", &size),
                ("Content-MD5", &version.md5),
            ] {
                metadata.push((key.into(), value.into()));
            }
        }
        for (key, value) in &metadata {
            reply.set(key, value);
        }
    }

    /// The SQL-backed server adds the name of the uploaded form part.
    fn metadata_of(&self, version: &Version) -> Vec<(String, String)> {
        let mut metadata = version.metadata.clone();
        if self.is_sql() {
            metadata.push(("partName".into(), "blob".into()));
            metadata.sort();
        }
        metadata
    }

    fn browse(&self, request: &Request, wanted: &Wanted, only_latest: bool) -> Reply {
        let path = wanted.path.join("/");
        let unanchored = self.habits.lock().unwrap().browse_unanchored;
        let versions = self.versions.lock().unwrap();
        let known = |key: &str| versions.iter().any(|v| v.metadata.iter().any(|(k, _)| k == key));
        // The SQL-backed server ignores a filter by a key that no version has ever had.
        let filters: Vec<_> =
            wanted.filters.iter().filter(|(key, _)| !self.is_sql() || known(key)).collect();
        let listed = |version: &Version| match path.strip_suffix(".*") {
            Some(folder) => version.path.starts_with(folder) && version.path != folder,
            None if unanchored => version.path.starts_with(&path),
            None => version.path == path,
        };
        // As in look-ups, a file-backed server ignores the UUID unless the time is positive.
        let by_id =
            wanted.id.filter(|_| self.kind != Kind::Local || wanted.at.is_some_and(|at| at > 0));
        let mut found: Vec<&Version> = versions
            .iter()
            .filter(|version| listed(version))
            .filter(|version| wanted.at.is_none_or(|at| version.from <= at && at < version.until))
            .filter(|version| by_id.is_none_or(|id| version.id == id))
            .filter(|version| created_within(version, request))
            .filter(|version| filters.iter().all(|filter| self.passes(version, filter)))
            .collect();
        found.sort_by_key(|version| std::cmp::Reverse(version.created));
        let mut seen = std::collections::HashSet::new();
        found.retain(|version| !only_latest || seen.insert(&version.path));
        if let Some(limit) = request
            .header("browse-limit")
            .and_then(|limit| limit.parse::<usize>().ok())
            .filter(|limit| *limit > 0)
        {
            found.truncate(limit);
        }
        if self.kind == Kind::Local {
            found.sort_by_key(|v| format!("{}/{}/{}", v.path, v.from, v.id));
        }
        let fields = request.header("x-filter-fields");
        let objects: Vec<String> =
            found.iter().map(|version| self.entry(version, fields)).collect();
        let mut reply = Reply::new(200);
        reply.push("Cache-Control", "no-cache");
        reply.push("Content-Type", "application/json;charset=ISO-8859-1");
        reply.push("Date", "Mon, 23 Nov 2026 08:17:21 GMT");
        let folder = if path.is_empty() { String::new() } else { format!("{path}/") };
        let folders: std::collections::BTreeSet<&str> = versions
            .iter()
            .filter_map(|v| v.path.strip_prefix(&folder).map(|rest| (v, rest)))
            .map(|(v, rest)| &v.path[..folder.len() + rest.find('/').unwrap_or(rest.len())])
            .collect();
        let folders: Vec<String> = folders.iter().map(|folder| json(folder)).collect();
        reply.body = format!(
            "{{\"objects\":[\n{}]\n,\"subfolders\":[\n{}]\n}}\n",
            objects.join(",\n"),
            folders.join(",\n")
        )
        .into_bytes()
        .into();
        reply
    }

    fn entry(&self, version: &Version, fields: Option<&str>) -> String {
        let Version { path, id, from, until, created, bytes, md5, .. } = version;
        let (from, until, created) = (from.to_string(), until.to_string(), created.to_string());
        let size = bytes.len().to_string();
        let replicas: Vec<_> = match self.kind {
            Kind::Memory => vec![json(&format!("/download/{id}"))],
            _ => self.locations(version, false).iter().map(|l| json(l)).collect(),
        };
        // The SQL-backed server lists no time of a change.
        let is_sql = self.is_sql();
        let modified = if is_sql { version.created } else { version.modified }.to_string();
        let mut all: Vec<(&str, String)> = vec![
            ("path", json(path)),
            ("createTime", created.clone()),
            ("lastModified", modified.clone()),
            ("Created", created),
            ("Last-Modified", modified),
            ("id", json(&id.to_string())),
            ("validFrom", from.clone()),
            ("validUntil", until.clone()),
            ("initialValidity", until.clone()),
            ("MD5", json(md5)),
            ("fileName", json("a.txt")),
            ("contentType", json("text/plain")),
            ("size", size.clone()),
            ("ETag", json(&format!("\"{id}\""))),
            ("Valid-From", from),
            ("Valid-Until", until.clone()),
            ("InitialValidityLimit", until),
            ("Content-MD5", json(md5)),
            ("Content-Disposition", json("inline;filename=\"a.txt\"")),
            ("Content-Type", json("text/plain")),
            ("Content-Length", size),
        ];
        if is_sql {
            all.push(("UploadedFrom", json("127.0.0.1")));
        }
        let fields: Option<Vec<&str>> =
            fields.map(|fields| fields.split([' ', ',', ';']).filter(|f| !f.is_empty()).collect());
        // Metadata replace keys of the listing only if they are requested.
        let is_complete = fields.as_ref().is_some_and(|fields| {
            fields.iter().all(|field| all.iter().any(|(name, _)| name == field))
        });
        let metadata = if is_complete { Vec::new() } else { self.metadata_of(version) };
        let metadata: Vec<_> =
            metadata.iter().map(|(key, value)| (key.as_str(), json(value))).collect();
        let replicas = ("replicas", format!("[{}]", replicas.join(",")));
        match self.habits.lock().unwrap().repeats_keys {
            None => metadata.into_iter().chain([replicas]).for_each(|(key, value)| {
                match all.iter_mut().find(|(name, _)| *name == key) {
                    Some((_, old)) => *old = value,
                    None => all.push((key, value)),
                }
            }),
            Some(Repeat::After) => all.extend(metadata.into_iter().chain([replicas])),
            Some(Repeat::Before) => {
                all = metadata.into_iter().chain(all).chain([replicas]).collect();
            }
        }
        if let Some(fields) = fields {
            all.retain(|(name, _)| fields.contains(name));
        }
        let all: Vec<_> =
            all.iter().map(|(name, value)| format!("{}:{value}", json(name))).collect();
        format!("{{{}}}", all.join(","))
    }
}

/// `If-Not-After` and `If-Not-Before`: inclusive, and 0 or less is no limit.
fn created_within(version: &Version, request: &Request) -> bool {
    let limit =
        |name| request.header(name).and_then(|text| text.parse::<i64>().ok()).filter(|ms| *ms > 0);
    limit("if-not-after").is_none_or(|ms| version.created <= ms)
        && limit("if-not-before").is_none_or(|ms| version.created >= ms)
}

/// Whether `If-None-Match` names this id, in one of the forms that servers accept.
fn names(header: Option<&str>, id: Uuid) -> bool {
    header
        .map(|text| text.trim_start_matches("W/").trim_matches('"'))
        .and_then(|text| Uuid::parse_str(text).ok())
        == Some(id)
}

/// A JSON string as written by the server: slashes and all non-ASCII characters escaped.
fn json(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '/' => quoted.extend(['\\', c]),
            c if c.is_ascii() && !c.is_ascii_control() => quoted.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    quoted.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    quoted.push('"');
    quoted
}
