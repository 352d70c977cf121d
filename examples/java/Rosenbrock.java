// Rosenbrock's valley from Java over HTTP: the JDK's own HttpClient, as it is by default, and nothing to install.
//
// java examples/java/Rosenbrock.java http://127.0.0.1:8000
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.UUID;

public class Rosenbrock {
    static final String OCTETS = "application/octet-stream";
    static final HttpClient CLIENT = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();

    // One call. What got no answer, or 429 or 503, is sent again: a step has a number, and the creation a key.
    static HttpResponse<byte[]> call(HttpRequest request) throws IOException, InterruptedException {
        for (int attempt = 1; ; attempt++) {
            HttpResponse<byte[]> answer = null;
            try {
                answer = CLIENT.send(request, BodyHandlers.ofByteArray());
            } catch (IOException error) {
                if (attempt == 10) throw error;
            }
            if (answer != null && answer.statusCode() < 300) return answer;
            boolean again = answer == null || answer.statusCode() == 429 || answer.statusCode() == 503;
            if (!again || attempt == 10) throw new IOException(new String(answer.body(), "UTF-8"));
            Thread.sleep(200L * attempt);
        }
    }

    static HttpRequest.Builder to(URI address) {
        return HttpRequest.newBuilder(address).timeout(Duration.ofSeconds(60)).header("Accept", OCTETS);
    }

    // A ByteBuffer is big-endian until it is told.
    static byte[] encode(double... values) {
        ByteBuffer buffer = ByteBuffer.allocate(8 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        for (double value : values) buffer.putDouble(value);
        return buffer.array();
    }

    static double[] decode(byte[] body) {
        double[] values = new double[body.length / 8];
        ByteBuffer.wrap(body).order(ByteOrder.LITTLE_ENDIAN).asDoubleBuffer().get(values);
        return values;
    }

    static byte[] gradient(double x, double y) {
        double t = y - x * x;
        return encode(-2 * (1 - x) - 400 * x * t, 200 * t);
    }

    public static void main(String[] words) throws IOException, InterruptedException {
        String told = System.getenv().getOrDefault("ADAMD_URL", "http://127.0.0.1:8000");
        URI sessions = URI.create((words.length > 0 ? words[0] : told) + "/v1/sessions");
        String start = "{\"parameters\": [-1.2, 1.0], \"optimizer\": {\"name\": \"adam\", \"lr\": 0.05}}";
        HttpRequest.Builder creation = HttpRequest.newBuilder(sessions).timeout(Duration.ofSeconds(60));
        creation.header("Content-Type", "application/json").header("Idempotency-Key", UUID.randomUUID().toString());
        HttpResponse<byte[]> made = call(creation.POST(BodyPublishers.ofString(start)).build());
        String session = sessions.resolve(made.headers().firstValue("Location").orElseThrow()).toString();

        HttpResponse<byte[]> answer = call(to(URI.create(session + "/parameters")).build());
        for (int step = 1; step <= 20; step++) {
            double[] at = decode(answer.body());
            HttpRequest.Builder next = to(URI.create(session + "/steps/" + step)).header("Content-Type", OCTETS);
            // If-Match: the step shall build on the history that we know, not on another of the same length.
            next.header("If-Match", answer.headers().firstValue("ETag").orElseThrow());
            answer = call(next.PUT(BodyPublishers.ofByteArray(gradient(at[0], at[1]))).build());
            double[] now = decode(answer.body());
            System.out.println(answer.headers().firstValue("Adamd-Step").orElseThrow() + " " + now[0] + " " + now[1]);
        }
        call(to(URI.create(session)).DELETE().build());
    }
}
