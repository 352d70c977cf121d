# Rosenbrock's valley from R, over HTTP, in float64. Needs the package curl.
#
# Octet-stream and not JSON: jsonlite's toJSON keeps 4 digits unless it is told digits = NA, and writes a lone number as [1].
library(curl)

arguments <- commandArgs(trailingOnly = TRUE)
base <- if (length(arguments)) arguments[1] else Sys.getenv("ADAMD_URL", "http://127.0.0.1:8000")
sessions <- paste0(base, "/v1/sessions")

# One call; what got no answer, or 429 or 503, is sent again. Returns the answer's body as raw bytes.
call <- function(method, url, body = NULL, ...) {
  for (attempt in 1:10) {
    request <- new_handle(customrequest = method)
    handle_setheaders(request, ...)
    if (!is.null(body)) handle_setopt(request, postfields = body, postfieldsize = length(body))
    answer <- tryCatch(curl_fetch_memory(url, request), error = function(e) e)
    if (!inherits(answer, "error") && answer$status_code < 300) return(answer$content)
    if (!inherits(answer, "error") && !(answer$status_code %in% c(429, 503))) stop(rawToChar(answer$content))
    Sys.sleep(0.2 * attempt)
  }
  stop("no answer from ", url)
}

octets <- "application/octet-stream"
encode <- function(values) writeBin(as.double(values), raw(), size = 8, endian = "little")
decode <- function(bytes) readBin(bytes, "double", n = length(bytes) / 8, size = 8, endian = "little")

gradient <- function(p) {
  x <- p[1]
  y <- p[2]
  t <- y - x * x
  c(-2 * (1 - x) - 400 * x * t, 200 * t)
}

name <- sprintf("rosenbrock-r-%d-%.0f", Sys.getpid(), 1e6 * as.numeric(Sys.time()))
here <- paste0(sessions, "/", name)
document <- sprintf('{"name": "%s", "parameters": [-1.2, 1.0], "optimizer": {"name": "adam", "lr": 0.05}}', name)
invisible(call("POST", sessions, charToRaw(document), "Content-Type" = "application/json", "Idempotency-Key" = name))
parameters <- decode(call("GET", paste0(here, "/parameters"), Accept = octets))
for (step in 1:20) {
  url <- paste0(here, "/steps/", step)
  parameters <- decode(call("PUT", url, encode(gradient(parameters)), "Content-Type" = octets, Accept = octets))
  cat(step, sprintf("%.17g", parameters), "\n")
}
invisible(call("DELETE", here))
