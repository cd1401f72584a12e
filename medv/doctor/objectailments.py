"""What is known of faults in objects and in ranges of them: missing, blocked, altered, compressed, cut. Pure data."""

from __future__ import annotations

from typing import Final

from medv.doctor.finding import Ailment, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
_IIS_MIME: Final = (
    "IIS serves no file whose extension it does not know (404.3): <staticContent> with mimeMap .bin and .json; "
    "see `medv-repo doctor --example iis`."
)

OBJECTS: Final = {
    "no-image": Ailment(
        severity=NOTE,
        why="A server of static files cannot be asked what it has, so no object was looked at.",
        do="Name an image: medv-repo doctor URL IMAGE; or the repository's directory, with --source DIR.",
    ),
    "head-missing": Ailment(
        severity=ERROR,
        exit_code=4,
        why="Clients begin with this file: without it there is no image.",
        do="Check the URL's path, the name of the image, and that the server's root is the repository's directory.",
        nginx="`root` adds the whole path of the URL, `alias` replaces the location's.",
        iis=_IIS_MIME,
        s3="Names of objects are case-sensitive and have no slash in front; is there an origin path?",
    ),
    "bin-blocked": Ailment(
        severity=ERROR,
        exit_code=4,
        why="The head is served, files named *.bin are not: nothing can be fetched.",
        do="Allow *.bin; or they were not copied to this server: heads must be copied last.",
        nginx="Look for a `location ~ \\.(bin|exe)$ { deny all; }`.",
        iis=_IIS_MIME + " IIS also refuses folders named `bin` (404.8): <hiddenSegments><remove segment='bin'/>.",
        squid="An http_access or reply_mime_type rule against downloads.",
    ),
    "json-blocked": Ailment(
        severity=ERROR,
        exit_code=4,
        why="The image's files are served, *.json is not: clients find no image.",
        do="Allow *.json.",
        iis=_IIS_MIME,
    ),
    "name-blocked": Ailment(
        severity=ERROR,
        exit_code=4,
        why="IIS hides folders of this name (request filtering, 404.8).",
        do="Choose another name, or take it off the list.",
        iis="<security><requestFiltering><hiddenSegments><remove segment='bin'/>; see `--example iis`.",
    ),
    "long-name-refused": Ailment(
        severity=WARNING,
        why="Names of objects can be 220 characters long, with dots, hyphens and underscores in each part; the server "
        "refuses such a URL instead of looking for it.",
        do="Allow URLs of 1,024 characters beside the query, and these characters anywhere in them.",
        nginx="large_client_header_buffers 4 16k;",
        iis="requestLimits maxUrl='4096' maxQueryString='8192'.",
    ),
    "web-page": Ailment(
        severity=ERROR,
        why="A web page comes instead of the object: a login page, a portal of this network, a virus scanner's notice, "
        "or the server's own. Clients notice by its digest, but get nothing.",
        do="Open the URL in a browser on this machine, and see who answers; exempt the server from inspection.",
        nginx="No `try_files $uri /index.html;` for the repository.",
        iis="Forms or Windows authentication redirects to a page: allow anonymous access here.",
        s3="Use the REST endpoint instead of the website's, and no custom error pages with status 200 in CloudFront.",
        squid="deny_info pages and external_acl portals must answer with 401 or 403.",
    ),
    "damaged": Ailment(
        severity=ERROR,
        exit_code=6,
        why="The bytes are not those that were published. Clients notice and fetch them again, in vain.",
        do="`medv-repo verify DIR` on the server tells whether they are damaged there. If not, something on the way "
        "alters them: a scanner, a proxy that rewrites or joins content; exempt the server from it.",
        nginx="sub_filter, gunzip, addition modules off; after a disk fault restore the file.",
        s3="Upload again, byte for byte (no `text` mode, no transformation on upload).",
    ),
    "damaged-in-cache": Ailment(
        severity=ERROR,
        exit_code=6,
        why="A cache on the way holds damaged bytes; the server has the right ones. Clients ask past the cache once "
        "for "
        "each, which costs twice.",
        do="Purge the object, then see how it came there (a broken-off answer kept as whole, a fault of the disk).",
        nginx="Delete the files of proxy_cache_path, reload.",
        s3="CloudFront: create an invalidation for the path.",
        squid="`squidclient -m PURGE URL`, or stop it and run `squid -z` on an empty cache_dir.",
    ),
    "source-differs": Ailment(
        severity=ERROR,
        why="The server's head is not that of --source: clients do not see what was published.",
        do="Copy the repository (packs first, heads last), or purge the cache that answers.",
    ),
    "compressed": Ailment(
        severity=ERROR,
        why="Answers are compressed although clients ask for `identity`: lengths and ranges are then those of other "
        "bytes, so clients refuse them. Objects are compressed already.",
        do="Switch compression off for the repository.",
        nginx="gzip off; (and brotli off;) in the repository's location.",
        iis="<urlCompression doStaticCompression='false' doDynamicCompression='false'/>.",
        s3="CloudFront: `Compress objects automatically` off; S3: no Content-Encoding among the object's metadata.",
        squid="An eCAP or ICAP service compresses: adaptation_access deny for this site.",
    ),
    "text-type": Ailment(
        severity=NOTE,
        why="The object is sent as text: proxies may compress it, convert its characters or insert something.",
        do="Send application/octet-stream for .bin, application/json for .json.",
        nginx="types { application/json json; } default_type application/octet-stream;",
        iis="mimeMap .bin application/octet-stream.",
        s3="--content-type application/octet-stream on upload.",
    ),
    "soft-404": Ailment(
        severity=WARNING,
        why="What is not there is answered with 200: optional objects (deltas) seem damaged instead of missing, and "
        "clients "
        "warn of them; a version that is not there looks damaged, too.",
        do="Answer 404.",
        nginx="No `try_files ... /index.html` or `error_page 404 =200` here: try_files $uri =404;",
        iis="<httpErrors existingResponse='Auto'> without a rewrite to a page.",
        s3="CloudFront: no custom error response that maps 403 or 404 to 200.",
    ),
    "missing-denied": Ailment(
        severity=WARNING,
        exit_code=8,
        why="What is not there is answered with access denied: clients ask for optional objects (deltas) and warn of a "
        "refusal; a version that is not there looks like one that may not be read.",
        do="Answer 404 for what does not exist.",
        nginx="try_files $uri =404; and no deny rule that is wider than it need be.",
        s3="Who lacks s3:ListBucket gets 403 for missing objects: grant it to the reader (CloudFront's identity), or "
        "map "
        "403 to response code 404 in a custom error response.",
    ),
    "missing-odd": Ailment(
        severity=WARNING,
        why="What is not there is answered with another status than 404. Clients ask for optional objects (deltas); "
        "where "
        "the server seems to have failed (5xx) they try again for a quarter of an hour, then give up.",
        do="Answer 404.",
        nginx="try_files $uri =404;",
        iis="<httpErrors errorMode='Custom'> without redirects.",
        squid="negative_ttl 0 seconds, so that a missing object is not remembered.",
    ),
    "listing": Ailment(
        severity=NOTE,
        why="The server lists its folders: whoever can read one image learns of all others.",
        do="Switch it off, unless that is wanted.",
        nginx="autoindex off;",
        iis="<directoryBrowse enabled='false'/>.",
        s3="No s3:ListBucket for everybody; a missing object is then 403: see there.",
    ),
    "private-folder": Ailment(
        severity=WARNING,
        why="The folder .trimtransfer holds the publisher's locks and notes: nobody else needs them.",
        do="Refuse names that begin with a dot.",
        nginx="location ~ /\\. { return 404; }",
        iis="<hiddenSegments><add segment='.trimtransfer'/>.",
        s3="Do not copy it: aws s3 sync --exclude '.trimtransfer/*'.",
        squid="acl private urlpath_regex /\\. ; http_access deny private.",
    ),
    "range-ignored": Ailment(
        severity=WARNING,
        why="The server, or a proxy on the way, sends whole objects where ranges are asked for. Clients manage, but an "
        "update costs whole packs, and objects of more than 64 MiB cannot be read in part at all.",
        do="Let Range through, and answer 206.",
        nginx="max_ranges 1; (not 0); as a proxy: proxy_force_ranges on; or proxy_set_header Range $http_range;",
        iis="Serve the files by the StaticFile handler, not through a program.",
        s3="CloudFront: forward ranges (the default); a Lambda in between must pass Range on.",
        squid="It passes ranges on; a proxy before it may not. A scanner (ICAP) may need range_offset_limit none.",
    ),
    "range-wrong": Ailment(
        severity=ERROR,
        why="The answer to a range is not the range that was asked for, or does not say which it is. Clients throw it "
        "away and fail.",
        do="Find who answers wrongly: ask the server itself without the proxies between.",
        nginx="slice and proxy_cache: the key must contain $slice_range, and the object must not change meanwhile.",
        s3="A Lambda or function that makes answers must set status 206 and Content-Range.",
    ),
    "range-mixed": Ailment(
        severity=ERROR,
        exit_code=6,
        why="The range has other bytes than the same place of the whole object: a cache mixes ranges or versions.",
        do="Purge the cache; make ranges part of its key, or let it fetch whole objects.",
        nginx="proxy_cache with Range needs slice, or proxy_force_ranges on and no Range to the server behind.",
        s3="CloudFront: do not add Range to the cache key yourself; invalidate.",
        squid="range_offset_limit none for packs, so that whole objects are kept.",
    ),
    "range-short": Ailment(
        severity=WARNING,
        why="Ranges come shorter than they were asked for: each costs more requests.",
        do="Lift the limit of a proxy or CDN on the size of answers; 4 MiB should pass at once.",
    ),
    "range-beyond": Ailment(
        severity=NOTE,
        why="Beyond an object's end 416 is right; then a client knows at once that the repository changed.",
        do="Nothing, if all else is sound.",
    ),
    "range-large": Ailment(
        severity=ERROR,
        why="Ranges beyond 2 or 4 GiB fail: a 32-bit number somewhere on the way.",
        do="Update the server or proxy that does it; 64-bit file sizes are needed.",
        iis="A 32-bit application pool, or a filter, limits sizes.",
        squid="maximum_object_size above the size of the largest object; a 64-bit squid.",
    ),
    "whole-wrong": Ailment(
        severity=ERROR,
        why="Whole objects come with another length, or as a part. Clients fetch a pack whole where they need most "
        "of it.",
        do="Look for a cache that keeps a range as if it were the whole object, and for limits of size.",
        nginx="proxy_cache without slice must not pass Range on: proxy_set_header Range ''; proxy_force_ranges on;",
        squid="range_offset_limit none; reply_body_max_size must allow 4 MB.",
    ),
    "size-limit": Ailment(
        severity=ERROR,
        why="Packs have up to 4,000,000 bytes; one this large does not come whole, smaller objects do.",
        do="Raise the limit of sizes on the way to 4 MB, better to 1 GB for tables of large images.",
        nginx="As a proxy: proxy_max_temp_file_size 0; and the disk of proxy_temp_path.",
        squid="reply_body_max_size; maximum_object_size 1 GB.",
    ),
    "no-length": Ailment(
        severity=NOTE,
        why="Without Content-Length a broken-off answer can hardly be told from a complete one; and caches may not "
        "keep "
        "it.",
        do="Send files as files, not through a filter or program.",
        nginx="gzip, sub_filter, ssi off.",
    ),
}
