//! The pages that real servers send with errors, and in answer to requests that do not parse.

use super::wire::{Reply, Request};

/// `HTTP Status 404 – Not Found` and similar pages, in Tomcat's layout.
pub(crate) fn status(status: u16, message: &str) -> Reply {
    let (title, description) = match status {
        404 => (
            "Not Found",
            "The origin server did not find a current representation for the target resource or is \
             not willing to disclose that one exists.",
        ),
        _ => (
            "Internal Server Error",
            "The server encountered an unexpected condition that prevented it from fulfilling the \
             request.",
        ),
    };
    let mut reply = Reply::new(status);
    reply.push("Cache-Control", "no-cache");
    reply.push("Content-Type", "text/html;charset=utf-8");
    reply.push("Content-Language", "en");
    reply.push("Date", "Mon, 23 Nov 2026 08:17:20 GMT");
    reply.body = format!(
        "<!doctype html><html lang=\"en\"><head><title>HTTP Status {status} – {title}</title>\
         <style type=\"text/css\">body {{font-family:Tahoma,Arial,sans-serif;}} h1, h2, h3, b \
         {{color:white;background-color:#525D76;}} h1 {{font-size:22px;}} h2 {{font-size:16px;}} \
         h3 {{font-size:14px;}} p {{font-size:12px;}} a {{color:black;}} .line \
         {{height:1px;background-color:#525D76;border:none;}}</style></head><body><h1>HTTP Status \
         {status} – {title}</h1><hr class=\"line\" /><p><b>Type</b> Status Report</p><p>\
         <b>Message</b> {message}</p><p><b>Description</b> {description}</p><hr class=\"line\" />\
         </body></html>"
    )
    .into_bytes()
    .into();
    // 400, 500 and 501 close the connection.
    reply.last = matches!(status, 400 | 500 | 501);
    reply
}

/// The server's answer to a request that does not parse, with status 200.
pub(crate) fn usage(request: &Request) -> Reply {
    let mut reply = Reply::new(200);
    reply.push("Content-Type", "text/plain;charset=ISO-8859-1");
    reply.push("Date", "Mon, 23 Nov 2026 08:17:20 GMT");
    reply.body = format!(
        "Usage of /*:\n  GET:\n    task name / detector name / start time / <UUID> - return the \
         content of that UUID, or\n    task name / detector name / [ / time [ / key = value]* ]\n\n  \
         POST:\n    task name / detector name / start time [ / end time ] [ / UUID ] [ / key = \
         value ]*\n    binary blob as multipart parameter called 'blob'\n\n  PUT:\n    task name / \
         detector name / start time [ / new end time ] [ / UUID ] [? (key=newvalue&)* ]\n\n  \
         DELETE:\n    task name / detector name / start time / UUID\n    or any other selection \
         string, the matching object will be deleted\n\nUsage of /browse/* or /latest/*:\n  GET:\n    \
         task name / detector name / [start time, default = now] [/key=value]*\n    Use the Accept \
         header to control the output format (one of text/plain, text/html, text/xml, \
         application/json)\n\nThis call was made with:\n  servlet path: \n  context path: \n  HTTP \
         method: {method}\n  path info: {target}\n  query string: null\n  request URI: {target}\n",
        method = request.method,
        target = request.target,
    )
    .into_bytes()
    .into();
    reply
}
