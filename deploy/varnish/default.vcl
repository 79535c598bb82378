vcl 4.1;

# Varnish before a CCDB, or before an S3-compatible store that holds a repository.
#
#   GET /<path>/<time>           which version holds: passes, never stored
#   GET /browse/…, /latest/…     listings: pass
#   GET /<path>/<from>/<UUID>    the bytes of a version: fetched once, kept for ever
#   GET /download/<UUID>         likewise
#
# What stands behind a UUID never changes, so it is kept although servers send
# `Cache-Control: no-cache`. Start with room for the objects, e.g.
#   varnishd -a :8080 -f default.vcl -s file,/var/lib/varnish/ccdb.bin,200G

backend ccdb {
    .host = "ccdb.example.org";
    .port = "8080";
    .connect_timeout = 5s;
    # A replica on the Grid takes its time.
    .first_byte_timeout = 60s;
    .between_bytes_timeout = 30s;
}

sub vcl_recv {
    set req.backend_hint = ccdb;
    unset req.http.X-Body-Id;
    if (req.method != "GET" && req.method != "HEAD") {
        # Uploads belong to the CCDB itself; and what nobody knows is no business of a cache.
        return (synth(405, "Method Not Allowed"));
    }
    if (req.url ~ "^/truncate(/|$)") {
        # With a real server a GET of this deletes.
        return (synth(403, "Forbidden"));
    }
    if (req.url !~ "^/(browse|latest)/" && req.url ~ "^/(download|.+/-?[0-9]+)/[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$") {
        set req.http.X-Body-Id = regsub(req.url, "^.*/", "");
        # One copy for all, whoever asks: nothing about the client counts.
        unset req.http.Cookie;
        return (hash);
    }
    return (pass);
}

sub vcl_hash {
    # The same bytes, whatever the server is called.
    hash_data(req.url);
    return (lookup);
}

sub vcl_backend_fetch {
    if (bereq.http.X-Body-Id) {
        # The whole of it, to be stored: a client's range is cut out of that.
        unset bereq.http.Range;
        unset bereq.http.If-None-Match;
        unset bereq.http.If-Modified-Since;
        unset bereq.http.Accept-Encoding;
    }
}

sub vcl_backend_response {
    if (beresp.status == 200 && !beresp.http.ETag && bereq.url !~ "^/(browse|latest)(/|$)" && bereq.url !~ "[?&]list-type=") {
        # A page of usage, or something in between: to a client an object without a name.
        return (error(502, "The server sent no ETag"));
    }
    if (!bereq.http.X-Body-Id) {
        return (deliver);
    }
    # Compressed here it would have another length, and Varnish its own idea of the ETag.
    set beresp.do_gzip = false;
    set beresp.do_gunzip = false;
    unset beresp.http.Set-Cookie;
    unset beresp.http.Vary;
    # A UUID for an ETag has to be the one that was asked for (a store has sums there).
    if (beresp.status == 200 && (beresp.http.ETag == {"""} + bereq.http.X-Body-Id + {"""} || beresp.http.ETag !~ "-.*-.*-.*-")) {
        set beresp.ttl = 365d;
        # Served while the server is down, too.
        set beresp.grace = 365d;
        # Who comes while it is fetched reads along.
        set beresp.do_stream = true;
    } else {
        # A redirect (SQL-backed servers), 404, an error: the next one asks again, at once.
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        set beresp.uncacheable = true;
        # Not remembered as 'do not wait for each other' for longer than this burst.
        if (beresp.status >= 300) {
            set beresp.ttl = 1s;
        }
    }
    # What is built in would not store `no-cache`.
    return (deliver);
}

sub vcl_backend_error {
    set beresp.http.Retry-After = "1";
}

sub vcl_deliver {
    if (req.http.X-Body-Id) {
        if (obj.hits > 0) {
            set resp.http.X-Cache = "HIT";
        } else {
            set resp.http.X-Cache = "MISS";
        }
    }
}
