use std::{env, fs, process};

fn main() {
    for name in env::args().skip(1) {
        match fs::read(&name) {
            Ok(data) => println!("{:08x}  {}", adler::adler32(&data), name),
            Err(e) => {
                eprintln!("{}: {}", name, e);
                process::exit(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_value() {
        assert_eq!(adler::adler32(b"Wikipedia"), 0x11e60398);
    }
}
