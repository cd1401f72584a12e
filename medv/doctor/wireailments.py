"""What is known of faults below and around the objects: names, addresses, TLS, redirects, clocks, access. Pure data."""

from __future__ import annotations

from typing import Final

from medv.doctor.finding import Ailment, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

WIRE: Final = {
    "proxy-environment": Ailment(
        severity=NOTE,
        why="medv-sync obeys the same variables of the environment, so all findings are of the server as that proxy "
        "shows it.",
        do="If the server is to be reached directly, add its name to NO_PROXY.",
    ),
    "unencrypted": Ailment(
        severity=WARNING,
        why="Whoever is on the way reads which images a machine fetches; and where the repository is not signed, "
        "decides "
        "what is in them.",
        do="Serve it by https; keep http for a redirect at most.",
        nginx="listen 443 ssl; ssl_certificate ...; see `medv-repo doctor --example nginx`.",
        iis="Add an https binding with a certificate to the site.",
        s3="Use the bucket's https endpoint, or CloudFront with viewer protocol policy `https-only`.",
        squid="Use https_port ... accel tls-cert= tls-key= instead of http_port; `--example squid`.",
    ),
    "name-unknown": Ailment(
        severity=ERROR,
        why="No client gets as far as the server.",
        do="Check the spelling, this machine's resolver, and whether the name is known in this network (split DNS, "
        "VPN).",
    ),
    "no-connection": Ailment(
        severity=ERROR,
        why="No client gets an answer.",
        do="Check that the server runs and listens at this port on all interfaces, and what firewalls between do.",
        nginx="`ss -tlnp | grep nginx`; listen 443 ssl; listen [::]:443 ssl;",
        squid="A cache that cannot reach its origin answers 503; one that is down does not answer at all.",
    ),
    "address-silent": Ailment(
        severity=WARNING,
        why="Clients try the addresses of a name in the system's order; a silent one costs each of them two seconds or "
        "more before the next is tried, and programs other than this one far longer.",
        do="Take the address out of DNS, or let the server listen on it (often IPv6: an AAAA record without a "
        "listener, "
        "or a firewall that drops it).",
        nginx="listen [::]:443 ssl; beside listen 443 ssl;",
        iis="Bind the site to `*` or to the IPv6 address, too.",
        s3="Use the dual-stack endpoint, or an A record only.",
        squid="https_port [::]:443 ... listens on both.",
    ),
    "address-differs": Ailment(
        severity=ERROR,
        why="Machines behind one name serve different states: clients see a new version, or do not, by chance, and may "
        "miss packs that the other has already.",
        do="Copy to all members packs first and heads last (or let all read one storage), and check each: "
        "`medv-repo doctor` asks every address.",
    ),
    "not-tls": Ailment(
        severity=ERROR,
        why="The port answers, but does not speak TLS.",
        do="Use http:// or the port at which the server speaks TLS.",
        nginx="The word `ssl` is missing in `listen 443 ssl;`.",
        squid="Use https_port, not http_port, for TLS.",
    ),
    "tls-handshake": Ailment(
        severity=ERROR,
        why="No TLS connection comes about: medv-sync wants TLS 1.2 or newer.",
        do="Allow TLS 1.2 and 1.3 with usual ciphers. Where a client's certificate is demanded, name one.",
        nginx="ssl_protocols TLSv1.2 TLSv1.3;",
        iis="Enable TLS 1.2 for servers (SCHANNEL), and SNI in the binding.",
    ),
    "tls-expired": Ailment(
        severity=ERROR,
        why="Clients refuse an expired certificate.",
        do="Renew it, and let the renewal reload the server. If only this machine refuses it, its clock is wrong.",
        nginx="`nginx -s reload` after renewal: a running nginx keeps the old certificate.",
        iis="Bind the new certificate to the site: renewal alone does not.",
        s3="ACM renews by itself only while its DNS record for validation exists.",
        squid="`squid -k reconfigure` after renewal.",
    ),
    "tls-name": Ailment(
        severity=ERROR,
        why="The certificate is for another name: clients take the server for an impostor.",
        do="Have the name in the certificate's subjectAltName, or use a URL with a name that is in it.",
        nginx="Another server block answers: is server_name right, and default_server?",
        iis="Set the host name in the binding and tick `Require Server Name Indication`.",
        s3="A bucket name with dots does not fit *.s3.amazonaws.com: use the path style, or CloudFront with its own "
        "name.",
        squid="The certificate must be for the name that clients use, not the origin's.",
    ),
    "tls-chain": Ailment(
        severity=ERROR,
        why="The server does not send the intermediate certificate. Browsers fetch it or have it; medv-sync and other "
        "programs do not.",
        do="Send the server's certificate and all intermediate ones, in this order.",
        nginx="ssl_certificate must name the full chain (`fullchain.pem`, not `cert.pem`).",
        iis="Import the intermediate certificate into `Intermediate Certification Authorities` of the machine.",
        squid="tls-cert= must name a file with the full chain.",
    ),
    "tls-authority": Ailment(
        severity=ERROR,
        why="Clients do not know who issued the certificate (an own authority, a self-signed one, or a proxy that "
        "opens "
        "TLS), so they refuse it.",
        do="Install the authority's certificate on the clients, or name it: --ca-cert FILE, SSL_CERT_FILE.",
    ),
    "tls-certificate": Ailment(
        severity=ERROR,
        why="Clients refuse the certificate.",
        do="Replace it by one that is valid for this name, with its full chain.",
    ),
    "tls-expiring": Ailment(
        severity=WARNING,
        why="On that day all clients stop.",
        do="Renew it now, and see why it was not renewed by itself.",
        nginx="Renewed already? `nginx -s reload`.",
        iis="Renewed already? Bind it to the site.",
        squid="Renewed already? `squid -k reconfigure`.",
    ),
    "redirect": Ailment(
        severity=NOTE,
        why="The first request of each run, and each one to an object that is elsewhere, takes one round trip more.",
        do="Give clients the final URL.",
    ),
    "redirect-elsewhere": Ailment(
        severity=WARNING,
        why="Credentials are for the server that the URL names and are not sent along to another: what wants them "
        "there "
        "refuses.",
        do="Give clients the final URL, or redirect to URLs that are signed.",
    ),
    "redirect-refused": Ailment(
        severity=ERROR,
        why="medv-sync follows five redirects at most, and none from https to http.",
        do="Correct the redirect; mostly a proxy that ends TLS did not tell the server behind it (X-Forwarded-Proto).",
        nginx="Behind a proxy: absolute_redirect off; or `return 301 https://$host$request_uri;`.",
        iis="URL Rewrite: condition on {HTTP_X_FORWARDED_PROTO}, not on {HTTPS}, behind a proxy that ends TLS.",
        s3="Use the endpoint of the bucket's own region, and the REST endpoint, not the website's.",
    ),
    "old-http": Ailment(
        severity=WARNING,
        why="HTTP/1.0 has no kept connections: each of thousands of ranges pays for a new one, with TLS.",
        do="Speak HTTP/1.1 to clients.",
        nginx="As a proxy: proxy_http_version 1.1; proxy_set_header Connection '';",
    ),
    "connection-closed": Ailment(
        severity=WARNING,
        why="Each request pays for a new connection, with TLS: two or three round trips more for each of thousands.",
        do="Keep connections open, at least 60 seconds and 1,000 requests.",
        nginx="keepalive_timeout 75s; keepalive_requests 10000;",
        iis="Tick `Enable HTTP keep-alive` in HTTP Response Headers / Set Common Headers.",
        squid="client_persistent_connections on; server_persistent_connections on.",
    ),
    "clock-skew": Ailment(
        severity=WARNING,
        why="Signed metadata and tokens have times in them: a client whose clock differs refuses them as expired or as "
        "not valid yet.",
        do="Set both clocks by NTP; see on which side the error is (`chronyc tracking`, `w32tm /query /status`).",
    ),
    "no-date": Ailment(
        severity=NOTE,
        why="Caches compute ages by the header Date, and the clock could not be compared.",
        do="Send Date.",
    ),
    "stalled": Ailment(
        severity=ERROR,
        why="Clients cut a request that brings nothing for a minute and start it again, up to a limit.",
        do="Look at the server's load and at proxies that hold answers back until they have them whole (virus "
        "scanners).",
        nginx="As a proxy: proxy_buffering on; proxy_read_timeout 60s; and look at the error log.",
        squid="read_timeout; and see whether range_offset_limit makes it fetch large files whole first.",
    ),
    "cut": Ailment(
        severity=ERROR,
        why="Answers end before they should; clients go on where they broke off, again and again.",
        do="Look at the server's log, its send time-outs, and limits of proxies.",
        nginx="send_timeout 60s; as a proxy: proxy_max_temp_file_size, a full disk of proxy_temp_path.",
        iis="connectionTimeout and minBytesPerSecond of the site's limits.",
    ),
    "not-examined": Ailment(
        severity=NOTE,
        why="Something was left out, so a fault there was not looked for.",
        do="Allow more with --max-bytes.",
    ),
    "given-up": Ailment(
        severity=NOTE,
        why="After several failures of the network no more was asked, so further faults were not looked for.",
        do="Put the errors right first.",
    ),
    "mirror-fails": Ailment(
        severity=WARNING,
        why="A mirror that the repository names does not serve a pack as it should: clients try it, pass over it, "
        "and take "
        "all from elsewhere. They show mirrors no credentials, and use only https where the repository does.",
        do="Bring the mirror up to date (packs, before heads are replaced), or name it no more: medv-repo mirrors.",
    ),
    "speed": Ailment(
        severity=NOTE,
        why="Of use to judge how long a sync will take from here; measured by a few requests only.",
    ),
    "access-denied": Ailment(
        severity=ERROR,
        exit_code=8,
        why="Clients with these credentials, or none, get nothing.",
        do="Give the doctor what clients have (https://user:password@host/...), or give them the right.",
        nginx="auth_basic_user_file, allow/deny; are the files readable for nginx's user?",
        iis="Anonymous authentication for the site, and read rights on the folder for IUSR and the pool's identity.",
        s3="The bucket's policy must allow s3:GetObject; a signed URL may have expired or be signed for another "
        "method.",
        squid="http_access allow must come before deny all; ACCESS in access.log: TCP_DENIED is its own refusal.",
    ),
    "proxy-denied": Ailment(
        severity=ERROR,
        exit_code=8,
        why="A proxy on the way wants credentials of its own.",
        do="HTTPS_PROXY=http://user:password@proxy:port, or NO_PROXY for this server.",
    ),
    "open-despite-credentials": Ailment(
        severity=WARNING,
        why="Credentials were given, but the server hands the repository out without them, too: everybody can read it.",
        do="Demand them, if it is not meant to be public; a cache in front must demand them itself.",
        nginx="auth_basic must stand in the location that serves the files.",
        s3="Block public access of the bucket; let CloudFront alone read it (origin access control).",
        squid="acl known proxy_auth REQUIRED; http_access allow known; http_access deny all.",
    ),
    "rate-limited": Ailment(
        severity=ERROR,
        why="The server turns requests away although few came, one after the other; clients use four connections and "
        "wait as long as it asks (two minutes at most), so a sync hardly moves.",
        do="Allow a client 200 requests per second and 16 connections, and bursts of some hundred.",
        nginx="limit_req zone=... burst=400 nodelay; limit_conn ... 64;",
        iis="Dynamic IP Restrictions: raise requests per interval, or exempt this folder.",
        s3="S3 slows down above some thousand requests per second and prefix; put a CDN in front.",
        squid="delay_pools, client_ip_max_connections, max_filedescriptors.",
    ),
    "server-error": Ailment(
        severity=ERROR,
        why="The server fails by itself; clients try again for a quarter of an hour, then give up.",
        do="Its log tells why. 502, 503 and 504 come from a proxy that does not reach the server behind it.",
        nginx="error_log; rights of the files and of all folders above them; `upstream` lines for 502 and 504.",
        iis="500.19: web.config is not valid (a MIME type twice: <remove> it before it is added).",
        squid="cache.log; cache_peer: name, port, tls, and whether the origin's certificate is believed (tls-cafile=).",
    ),
    "refused": Ailment(
        severity=ERROR,
        why="The server refuses a plain GET as clients send it.",
        do="Look for rules that filter requests (web application firewall, user agent, missing headers).",
        iis="Request Filtering: its log has the sub-status (404.4 to 404.19) that names the rule.",
    ),
}
