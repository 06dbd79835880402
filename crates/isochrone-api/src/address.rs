//! Addresses as operators write them: `HOST:PORT`, where HOST is a name, an IPv4 address, or an IPv6 address in brackets.
//!
//! Only the form is checked here; whether anybody answers shows when it is used.

/// Refuses what cannot be connected to, in words that say what is wrong.
pub fn check(address: &str) -> Result<(), String> {
    let because = |why: &str| Err(format!("\"{address}\" is not an address: {why} (expected HOST:PORT)"));
    if address.contains(char::is_whitespace) {
        return because("it has a space in it");
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return because("it has no port");
    };
    if host.is_empty() {
        return because("it has no host");
    }
    if host.contains("//") {
        return because("a cluster address has no scheme");
    }
    let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match v6 {
        Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_err() => {
            return because("in brackets stands an IPv6 address");
        }
        None if host.contains(':') => return because("an IPv6 address stands in brackets"),
        _ => {}
    }
    match port.parse::<u16>() {
        Ok(0) => because("port 0 is no port to connect to"),
        Ok(_) => Ok(()),
        Err(_) => because("the port is not a number from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:7433", "localhost:1", "db-1.example:65535", "[::1]:7433"] {
            assert_eq!(check(good), Ok(()));
        }
        for (bad, why) in [
            ("", "no port"),
            ("7433", "no port"),
            (":7433", "no host"),
            ("db:x", "not a number"),
            ("db:65536", "not a number"),
            ("db:0", "port 0"),
            ("::1:7433", "brackets"),
            ("[db]:7433", "IPv6"),
            ("http://db:7433", "scheme"),
            ("db:1, db:2", "space"),
        ] {
            let said = check(bad).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
