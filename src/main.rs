//! The binary. The program itself is a part of the library (`program`).

/// Runs the program.
fn main() -> std::process::ExitCode {
    devp2pd::run_program()
}
