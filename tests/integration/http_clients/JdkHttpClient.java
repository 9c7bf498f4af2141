import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** Sends the same request twice over one HttpClient, which offers HTTP/2 by default. Arguments: URL, key, body. */
class JdkHttpClient {
  public static void main(String[] arguments) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    HttpRequest request =
        HttpRequest.newBuilder(URI.create(arguments[0]))
            .header("Authorization", "Bearer " + arguments[1])
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(arguments[2]))
            .build();
    for (int i = 0; i < 2; i++) {
      var response = client.send(request, BodyHandlers.ofLines());
      System.out.println(response.statusCode() + " " + response.version());
      response.body().forEach(System.out::println);
    }
  }
}
