//! A small S3 server for tests: objects, listings in pages, conditional requests, counters.
//!
//! ```text
//!  GET, HEAD, PUT, DELETE /bucket/key     If-Match, If-None-Match
//!  GET /bucket?list-type=2                prefix, delimiter, continuation-token
//!  POST /bucket?delete                    several keys
//!  POST /bucket/key?uploads, PUT …?partNumber=n&uploadId=u, POST …?uploadId=u    in parts
//! ```
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// Keys per page of a listing, as in S3.
const PAGE_KEYS: usize = 1000;
const TIME: &str = "2026-11-20T10:00:00.000Z";
const HTTP_TIME: &str = "Fri, 20 Nov 2026 10:00:00 GMT";

#[derive(Debug, Clone)]
struct Stored {
    bytes: Vec<u8>,
    e_tag: String,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    /// Counts writes, so that each has another ETag.
    writes: u64,
    requests: Vec<String>,
    conditions_unknown: bool,
    /// Uploads in parts: the parts by number.
    uploads: Vec<BTreeMap<u32, Vec<u8>>>,
}

/// The server. Its threads end with the process.
#[derive(Debug, Clone)]
pub struct S3Server {
    state: Arc<Mutex<State>>,
    pub address: SocketAddr,
}

impl S3Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let server = Self { state: Arc::clone(&state), address };
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (connection, state) = (connection.unwrap(), Arc::clone(&state));
                std::thread::spawn(move || serve(connection, &state));
            }
        });
        server
    }

    /// Environment variables for programs.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Answers conditional requests as a store that does not know them.
    pub fn refuse_conditions(&self) {
        self.state().conditions_unknown = true;
    }

    /// The requests since the last call: `GET key`, `LIST prefix`, `304 key`, `412 key`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// Keys that begin with `prefix`.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.state().objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    pub fn object(&self, key: &str) -> Vec<u8> {
        self.state().objects[key].bytes.clone()
    }

    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        self.state().put(key, bytes);
    }

    pub fn remove(&self, key: &str) {
        self.state().objects.remove(key).unwrap();
    }
}

impl State {
    fn put(&mut self, key: &str, bytes: Vec<u8>) -> String {
        self.writes += 1;
        let e_tag = format!("\"{:08x}\"", self.writes);
        self.objects.insert(key.to_owned(), Stored { bytes, e_tag: e_tag.clone() });
        e_tag
    }
}

/// A request.
struct Asked {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>"))
    }
}

fn serve(connection: TcpStream, state: &Mutex<State>) {
    connection.set_nodelay(true).unwrap();
    let mut writer = connection.try_clone().unwrap();
    let mut reader = BufReader::new(connection);
    while let Some(asked) = read(&mut reader) {
        let reply = answer(&asked, &mut state.lock().unwrap());
        let mut head = format!("HTTP/1.1 {} X\r\nx-amz-request-id: 1\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if reply.status != 304 {
            head += &format!("Content-Length: {}\r\n", reply.body.len());
        }
        head += "\r\n";
        let mut all = head.into_bytes();
        if asked.method != "HEAD" {
            all.extend(&reply.body);
        }
        if writer.write_all(&all).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut parts = line.split_whitespace();
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), decoded(value))
    });
    // /bucket/key
    let path = decoded(path.trim_start_matches('/'));
    let key = path.split_once('/').map_or("", |(_, key)| key).to_owned();
    Some(Asked { method, key, query: query.collect(), headers, body })
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                let hex = std::str::from_utf8(&hex).unwrap();
                bytes.push(u8::from_str_radix(hex, 16).unwrap());
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn answer(asked: &Asked, state: &mut State) -> Reply {
    let Asked { method, key, query, headers, body } = asked;
    let name = match (method.as_str(), query.contains_key("list-type")) {
        (_, true) => format!("LIST {}", query.get("prefix").map_or("", String::as_str)),
        (method, _) => format!("{method} {key}"),
    };
    state.requests.push(name);
    let (if_match, if_none_match) = (headers.get("if-match"), headers.get("if-none-match"));
    if state.conditions_unknown
        && method == "PUT"
        && (if_match.is_some() || if_none_match.is_some())
    {
        return Reply::error(501, "NotImplemented");
    }
    if let Some(reply) = upload_in_parts(asked, state) {
        return reply;
    }
    let there = state.objects.get(key);
    match method.as_str() {
        "GET" if query.contains_key("list-type") => list(query, state),
        "GET" | "HEAD" => {
            let Some(there) = there else { return Reply::error(404, "NoSuchKey") };
            let mut reply = match if_none_match == Some(&there.e_tag) {
                true => Reply::new(304, ""),
                false => Reply::new(200, there.bytes.clone()),
            };
            reply.headers.push(("ETag", there.e_tag.clone()));
            reply.headers.push(("Last-Modified", HTTP_TIME.to_owned()));
            if reply.status == 304 {
                state.requests.push(format!("304 {key}"));
            }
            reply
        }
        "PUT" => {
            let fails = match (if_match, if_none_match.map(String::as_str)) {
                (Some(wanted), _) => there.is_none_or(|there| there.e_tag != *wanted),
                (None, Some("*")) => there.is_some(),
                _ => false,
            };
            if fails {
                state.requests.push(format!("412 {key}"));
                return Reply::error(412, "PreconditionFailed");
            }
            let mut reply = Reply::new(200, "");
            reply.headers.push(("ETag", state.put(key, body.clone())));
            reply
        }
        "DELETE" => {
            state.objects.remove(key);
            Reply::new(204, "")
        }
        "POST" => {
            let text = String::from_utf8_lossy(body).into_owned();
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
            let mut xml = "<DeleteResult>".to_owned();
            for key in keys {
                state.objects.remove(key);
                xml += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            Reply::new(200, xml + "</DeleteResult>")
        }
        _ => Reply::error(400, "BadRequest"),
    }
}

/// The answer to a request of an upload in parts; `None` for others.
fn upload_in_parts(asked: &Asked, state: &mut State) -> Option<Reply> {
    let Asked { method, key, query, body, .. } = asked;
    if method == "POST" && query.contains_key("uploads") {
        state.uploads.push(BTreeMap::new());
        let xml = format!(
            "<InitiateMultipartUploadResult><UploadId>{}</UploadId>\
             </InitiateMultipartUploadResult>",
            state.uploads.len() - 1
        );
        return Some(Reply::new(200, xml));
    }
    let upload: usize = query.get("uploadId")?.parse().ok()?;
    Some(match method.as_str() {
        "PUT" => {
            let number = query["partNumber"].parse().unwrap();
            state.uploads[upload].insert(number, body.clone());
            let mut reply = Reply::new(200, "");
            reply.headers.push(("ETag", format!("\"part{number}\"")));
            reply
        }
        "POST" => {
            let parts = std::mem::take(&mut state.uploads[upload]);
            let e_tag = state.put(key, parts.into_values().flatten().collect());
            let xml = format!(
                "<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>",
                e_tag.replace('"', "&quot;")
            );
            Reply::new(200, xml)
        }
        _ => Reply::new(204, ""),
    })
}

fn list(query: &BTreeMap<String, String>, state: &State) -> Reply {
    let text = |name: &str| query.get(name).cloned().unwrap_or_default();
    let (prefix, delimiter) = (text("prefix"), text("delimiter"));
    let after = text("continuation-token").max(text("start-after"));
    let mut entries: Vec<(String, Option<&Stored>)> = Vec::new();
    for (key, stored) in state.objects.range(prefix.clone()..) {
        let Some(rest) = key.strip_prefix(&prefix) else { break };
        match rest.split_once(&delimiter).filter(|_| !delimiter.is_empty()) {
            Some((folder, _)) => {
                let name = format!("{prefix}{folder}{delimiter}");
                if entries.last().is_none_or(|(last, _)| *last != name) {
                    entries.push((name, None));
                }
            }
            None => entries.push((key.clone(), Some(stored))),
        }
    }
    entries.retain(|(name, _)| *name > after);
    let more = entries.len() > PAGE_KEYS;
    entries.truncate(PAGE_KEYS);
    let mut xml = format!(
        "<ListBucketResult><IsTruncated>{more}</IsTruncated><KeyCount>{}</KeyCount>",
        entries.len()
    );
    if let Some((last, _)) = entries.last().filter(|_| more) {
        xml += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
    }
    for (name, stored) in entries {
        xml += &match stored {
            None => format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
            Some(Stored { bytes, e_tag }) => format!(
                "<Contents><Key>{name}</Key><LastModified>{TIME}</LastModified><ETag>{}</ETag>\
                 <Size>{}</Size></Contents>",
                e_tag.replace('"', "&quot;"),
                bytes.len()
            ),
        };
    }
    Reply::new(200, xml + "</ListBucketResult>")
}
