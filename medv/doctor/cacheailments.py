"""What is known of faults of caches, and of headers that caches go by. Pure data."""

from __future__ import annotations

from typing import Final

from medv.doctor.finding import Ailment, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
_MUTABLE: Final = "Cache-Control: public, no-cache for *.json (but metadata/N.*.json)"
_LASTING: Final = "Cache-Control: public, max-age=31536000, immutable"

CACHES: Final = {
    "head-stale": Ailment(
        severity=ERROR,
        why="A cache hands out an old head: clients that ask through it do not see the newest version.",
        do=f"Let caches ask again each time: {_MUTABLE}; then purge what they hold.",
        nginx="As a cache: proxy_cache_bypass $http_cache_control; or no proxy_cache for *.json.",
        iis="Output caching off for .json, and <clientCache cacheControlMode='NoControl'/> with a custom header.",
        s3="CloudFront: minimum TTL 0, and Cache-Control: no-cache on the objects; invalidate /images/*/head.json.",
        squid="Keep no heads: acl heads urlpath_regex /(head|channel-[^/]+|timestamp)\\.json$ ; cache deny heads.",
    ),
    "head-cached": Ailment(
        severity=WARNING,
        why="Caches may hand this file out without asking whether it has changed, so new versions show late. It was "
        "fresh just now.",
        do=f"{_MUTABLE}.",
        nginx='location ~ \\.json$ { add_header Cache-Control "public, no-cache"; }',
        iis="<location path='images'> ... <add name='Cache-Control' value='no-cache'/>; see `--example iis`.",
        s3="aws s3 cp --cache-control 'public, no-cache' for *.json; CloudFront: minimum TTL 0.",
        squid="acl heads urlpath_regex /(head|channel-[^/]+|timestamp)\\.json$ ; cache deny heads.",
    ),
    "head-undeclared": Ailment(
        severity=WARNING,
        why="Without Cache-Control each cache decides by itself how long it hands this file out: by its age, so most "
        "likely for days.",
        do=f"{_MUTABLE}.",
        nginx='location ~ \\.json$ { add_header Cache-Control "public, no-cache"; }',
        iis="<add name='Cache-Control' value='no-cache'/>; see `--example iis`.",
        s3="aws s3 cp --cache-control 'public, no-cache' for *.json; CloudFront: default TTL 0.",
        squid="acl heads urlpath_regex /(head|channel-[^/]+|timestamp)\\.json$ ; cache deny heads.",
    ),
    "lasting-forbidden": Ailment(
        severity=WARNING,
        why="Packs and files of versions never change, but caches are told not to keep them: a branch cache or CDN "
        "is of "
        "no use, each client costs the origin everything.",
        do=f"{_LASTING} for packs and *.bin of versions.",
        nginx='add_header Cache-Control "public, max-age=31536000, immutable";',
        iis="<clientCache cacheControlMode='UseMaxAge' cacheControlMaxAge='365.00:00:00' cacheControlCustom='public, "
        "immutable'/>.",
        s3="aws s3 sync --cache-control 'public, max-age=31536000, immutable'.",
        squid="At the origin; its own ignore-private and ignore-no-store are of no help for answers to credentials.",
    ),
    "lasting-short": Ailment(
        severity=WARNING,
        why="Packs and files of versions never change; caches that may keep them for so short a time ask again, or "
        "fetch "
        "again.",
        do=f"{_LASTING}.",
        nginx='add_header Cache-Control "public, max-age=31536000, immutable";',
        iis="cacheControlMaxAge='365.00:00:00'.",
        s3="aws s3 sync --cache-control 'public, max-age=31536000, immutable'; CloudFront: no maximum TTL below it.",
        squid="refresh_pattern /packs/ 525600 100% 525600.",
    ),
    "lasting-undeclared": Ailment(
        severity=NOTE,
        why="Without Cache-Control each cache decides by itself how long it keeps packs, which never change.",
        do=f"{_LASTING}.",
        nginx='add_header Cache-Control "public, max-age=31536000, immutable";',
        iis="<clientCache cacheControlMode='UseMaxAge' .../>; see `--example iis`.",
        s3="aws s3 sync --cache-control 'public, max-age=31536000, immutable'.",
        squid="refresh_pattern /packs/ 525600 100% 525600.",
    ),
    "not-public": Ailment(
        severity=NOTE,
        why="Answers to requests with credentials are kept by no shared cache unless they say `public` (RFC 9111, "
        "section "
        "3.5): a branch cache with its own credentials fetches all anew for each client.",
        do="If there is such a cache, add `public`; whoever keeps it must then check credentials itself.",
        nginx='add_header Cache-Control "public, max-age=31536000, immutable";',
        s3="--cache-control 'public, max-age=31536000, immutable'.",
        squid="login= of cache_peer sends its own credentials; the origin must say `public` all the same.",
    ),
    "no-validator": Ailment(
        severity=WARNING,
        why="Neither ETag nor Last-Modified: caches cannot ask whether an object is still the same, and fetch it anew.",
        do="Send ETag or Last-Modified.",
        nginx="etag on; (the default) and no filter that clears Last-Modified (sub_filter, ssi).",
        iis="Do not remove ETag by an outbound rule.",
    ),
    "validator-changes": Ailment(
        severity=WARNING,
        why="ETag or Last-Modified differ from one request to the next although the bytes are the same: machines of a "
        "farm do not agree. Caches fetch all anew; other programs than medv-sync break off downloads.",
        do="Copy files with their times (rsync -t, robocopy /COPY:DAT), or leave ETag away.",
        nginx="Its ETag is time and length: copy with rsync -t; or etag off;",
        iis="Its ETag contains the file's time and a change number: equal times; else remove it by an outbound rule.",
    ),
    "weak-validator": Ailment(
        severity=NOTE,
        why="A weak ETag (W/) says that the bytes may differ: most often something compresses or rewrites on the way.",
        do="See whether something compresses.",
        nginx="gzip off; for the repository.",
        s3="CloudFront: `Compress objects automatically` off.",
    ),
    "unconditional": Ailment(
        severity=NOTE,
        why="Asked whether an object is still the same, the server sends it again (200) instead of 304: each time a "
        "cache "
        "asks, it pays for the whole.",
        do="Pass If-None-Match and If-Modified-Since on, and answer 304.",
        nginx="if_modified_since exact; (the default); as a cache: proxy_cache_revalidate on;",
        squid="refresh_pattern with refresh-ims; the origin must give ETag or Last-Modified.",
    ),
    "vary": Ailment(
        severity=WARNING,
        why="Vary makes caches keep one copy of each object for each sort of client, or none.",
        do="Send no Vary, or Accept-Encoding at most.",
        nginx="gzip_vary off; no `add_header Vary`.",
        iis="Dynamic compression adds it: off here.",
        s3="CORS rules add Origin: remove them; CloudFront: forward no headers but Authorization where needed.",
    ),
    "cookie": Ailment(
        severity=WARNING,
        why="Most caches keep nothing that comes with Set-Cookie; medv-sync ignores cookies.",
        do="Serve the repository without session handling, stickiness by cookie, or bot protection.",
        nginx="As a proxy: proxy_hide_header Set-Cookie; proxy_ignore_headers Set-Cookie;",
        iis="Affinity cookies (ARRAffinity) and session state off.",
        s3="A load balancer's stickiness (AWSALB) off for this path.",
    ),
    "not-kept": Ailment(
        severity=WARNING,
        why="A cache is on the way, but the same piece of a pack missed it twice: it costs the origin what each client "
        "takes.",
        do="Let it fetch and keep whole packs (they have at most 4 MB) when ranges are asked for.",
        nginx="proxy_cache with proxy_set_header Range ''; proxy_force_ranges on; proxy_cache_lock on;",
        s3="CloudFront keeps ranges by itself: does Cache-Control allow it, is Authorization in the cache key?",
        squid="range_offset_limit none; quick_abort_min -1 KB; maximum_object_size 1 GB; see `--example squid`.",
    ),
    "missing-kept": Ailment(
        severity=WARNING,
        why="A cache keeps the answer that something is not there: what is published a moment later is not found as "
        "long as "
        "that lasts.",
        do="Let caches keep no 404.",
        nginx="As a cache: proxy_cache_valid 200 206 ...; not `any`.",
        iis="Output caching off.",
        s3="CloudFront: custom error responses for 403 and 404 with error caching minimum TTL 0 (by default 10 "
        "seconds).",
        squid="negative_ttl 0 seconds.",
    ),
    "cache-seen": Ailment(
        severity=NOTE,
        why="Answers came through this; some of the findings may be its, not the server's.",
        do="Examine the server without it, too.",
    ),
}
